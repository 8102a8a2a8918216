//! Keys of parts that come later. They are accepted and checked like all others, and reported once as not built
//! yet. Who builds such a part moves its keys from here to the file of the part.

use crate::spec::Fallback::{Absent, Bool, Float, Int, Text};
use crate::spec::{Key, KeySpec, NotBuilt, Shape};

type Later = Key<NotBuilt>;

const SECONDS: Shape = Shape::Int { min: 1, max: 86_400 };
const PERCENT: Shape = Shape::Float { min: 0.0, max: 100.0 };
const SEVERITY: Shape = Shape::Choice(&["info", "warn", "critical", "emergency"]);

/// All of them, by table.
pub static ALL: &[&KeySpec] = &[
    GPU_INTERVAL.spec(),
    GPU_UTILIZATION.spec(),
    GPU_MEMORY.spec(),
    GPU_TEMPERATURE.spec(),
    GPU_POWER.spec(),
    ZSCORE_WINDOW.spec(),
    ZSCORE_THRESHOLD.spec(),
    EMA_ALPHA.spec(),
    TREND_WINDOW.spec(),
    LEAK_OBSERVATION.spec(),
    LEAK_R_SQUARED.spec(),
    SQLITE_ENABLED.spec(),
    SQLITE_PATH.spec(),
    SQLITE_RETENTION.spec(),
    SYSLOG_PATH.spec(),
    GPU_XID.spec(),
    CUSTOM_PATTERNS.spec(),
];

// GPU.
static GPU_INTERVAL: Later =
    Key::later("collector.gpu_interval_secs", SECONDS, Int(10), "Seconds between two readings of the GPUs.");
static GPU_UTILIZATION: Later =
    Key::later("thresholds.gpu_utilization_percent", PERCENT, Float(95.0), "Alert at this utilization of a GPU.");
static GPU_MEMORY: Later =
    Key::later("thresholds.gpu_memory_percent", PERCENT, Float(90.0), "Alert at this use of a GPU's memory.");
static GPU_TEMPERATURE: Later = Key::later(
    "thresholds.gpu_temperature_celsius",
    Shape::Float { min: 0.0, max: 150.0 },
    Float(85.0),
    "Alert at this temperature of a GPU, before it throttles.",
);
static GPU_POWER: Later =
    Key::later("thresholds.gpu_power_percent", PERCENT, Float(95.0), "Alert at this part of a GPU's power limit.");
static GPU_XID: Later = Key::later(
    "log_analyzer.gpu_xid_monitoring",
    Shape::Bool,
    Bool(true),
    "Watch the kernel's log for NVIDIA Xid errors.",
);

// Analyzers.
static ZSCORE_WINDOW: Later = Key::later(
    "analyzer.zscore_window",
    Shape::Int { min: 10, max: 100_000 },
    Int(360),
    "Readings over which mean and deviation are taken.",
);
static ZSCORE_THRESHOLD: Later = Key::later(
    "analyzer.zscore_threshold",
    Shape::Float { min: 0.5, max: 100.0 },
    Float(3.0),
    "Standard deviations from the mean at which a value is an anomaly.",
);
static EMA_ALPHA: Later = Key::later(
    "analyzer.ema_alpha",
    Shape::Float { min: 0.001, max: 1.0 },
    Float(0.1),
    "Weight of the newest reading in the moving average.",
);
static TREND_WINDOW: Later = Key::later(
    "analyzer.trend_window_hours",
    Shape::Int { min: 1, max: 24 },
    Int(6),
    "Hours over which a trend is fitted.",
);
static LEAK_OBSERVATION: Later = Key::later(
    "analyzer.leak_min_observation_hours",
    Shape::Int { min: 1, max: 24 },
    Int(1),
    "Hours for which growth must last before it may be a leak.",
);
static LEAK_R_SQUARED: Later = Key::later(
    "analyzer.leak_r_squared_threshold",
    Shape::Float { min: 0.0, max: 1.0 },
    Float(0.8),
    "How well a line must fit the growth (R²) before it is called a leak.",
);

// Long-term storage.
static SQLITE_ENABLED: Later =
    Key::later("storage.sqlite_enabled", Shape::Bool, Bool(false), "Keep averages of each minute in SQLite.");
static SQLITE_PATH: Later = Key::later(
    "storage.sqlite_path",
    Shape::Text,
    Text("/var/lib/sysops-agent/metrics.db"),
    "File of the SQLite database.",
);
static SQLITE_RETENTION: Later = Key::later(
    "storage.sqlite_retention_days",
    Shape::Int { min: 1, max: 3650 },
    Int(30),
    "Days for which they are kept.",
);

// Logs other than the kernel's.
static SYSLOG_PATH: Later =
    Key::later("log_analyzer.syslog_path", Shape::Text, Text("/var/log/syslog"), "File of the source \"syslog\".");
static CUSTOM_PATTERNS: Later = Key::later(
    "log_analyzer.custom_patterns",
    Shape::TableList(&[PATTERN.spec(), PATTERN_SEVERITY.spec(), PATTERN_NAME.spec()]),
    Absent,
    "Patterns of your own, each a table of pattern (regular expression), severity and name.",
)
.example("[{ pattern = \"FATAL.*database\", severity = \"critical\", name = \"db_fatal\" }]");
static PATTERN: Later = Key::later("pattern", Shape::Text, Absent, "Regular expression that a line must match.");
static PATTERN_SEVERITY: Later = Key::later("severity", SEVERITY, Text("warn"), "Severity of the alert.");
static PATTERN_NAME: Later = Key::later("name", Shape::Text, Absent, "Name of the pattern in the alert.");
