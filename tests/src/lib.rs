//! Far ends and hostile input that several tests share.

pub mod http_far_end;
pub mod injection;
pub mod values;
