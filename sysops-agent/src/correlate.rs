//! Joins what several sources say of the same kernel event into one event. Pure: time is a parameter.
