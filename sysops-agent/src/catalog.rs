//! Lists of everything that registered components declare: the source of generated documents and checks.
