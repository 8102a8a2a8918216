//! What became of captures that led to no stack, in words. Whose they were is left to whoever follows the process.

/// Captures that led to no stack, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Lost {
    /// The stack goes on beyond what was copied, or a part of it was not in memory.
    pub cut: u64,
    /// The process was gone before its code could be read, or may not be looked at.
    pub gone: u64,
    /// A bound was reached.
    pub full: u64,
    /// They lead through a file that cannot be had. The same stack counts once.
    pub unread: u64,
    /// Others may lead to one, but are not taken yet: they came faster.
    pub is_behind: bool,
}

impl Lost {
    /// For people, to be put behind what is not attributed; empty when there is nothing to say. These are the captures of all
    /// processes, since the programs run.
    #[must_use]
    pub(super) fn why(self) -> String {
        let mut reasons: Vec<String> = [
            (self.cut, "were cut off"),
            (self.gone, "of processes that had gone"),
            (self.full, "more than there is room for"),
            (self.unread, "through a file that cannot be read, or was replaced"),
        ]
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, why)| format!("{count} {why}"))
        .collect();
        if self.is_behind {
            reasons.insert(0, "some are still to be taken".to_owned());
        }
        if reasons.is_empty() { String::new() } else { format!(" (of all captures {})", reasons.join(", ")) }
    }
}
