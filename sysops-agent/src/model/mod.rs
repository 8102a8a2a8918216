//! Plain data that the layers hand to each other. No I/O, no clock, no knowledge of any layer.

pub mod alert;
pub mod batch;
pub mod bytes;
pub mod causes;
pub mod container;
pub mod delivery;
pub mod event;
pub mod finding;
pub mod leak;
pub mod listed;
pub mod matcher;
pub mod metric;
pub mod notice;
pub mod readings;
pub mod report;
pub mod shown;
pub mod stack;
pub mod time;

pub use alert::{Alert, Change, Context, Severity, Status, Usage};
pub use batch::{Batch, Reading};
pub use bytes::bytes_text;
pub use causes::with_causes;
pub use delivery::{ChannelStatus, Fate, OutboxStatus, Outcome};
pub use event::{Detail, Event, Source};
pub use finding::{Finding, Level, Policy};
pub use leak::{LeakReport, LeakStack, Resource};
pub use listed::{Listed, Silence, Standing};
pub use matcher::{Matcher, MatcherError};
pub use metric::{Desc, Kind, Metric, Unit};
pub use notice::{Audience, Notice};
pub use readings::{Readings, Series, SeriesValue};
pub use shown::{cut, shown};
pub use stack::{Frame, Image};
pub use time::Tick;
