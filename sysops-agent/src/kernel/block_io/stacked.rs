//! Disks that make no requests: dm, md, the head of NVMe multipath, zram. Their bios are followed by two programs more, which
//! are attached when there is such a disk, as they run for every bio of every disk.

use sysops_btf::{Btf, TypeId};

use super::super::Rung;
use super::super::attach::Point;
use super::super::disks::Disks;
use super::super::ladder::Refusal;
use super::super::loader::Object;
use super::series::MEASURED;
use super::types;
use crate::host::Host;
use crate::model::Batch;

/// Whether bios are followed.
pub(super) enum Stacked {
    /// They can be as soon as there is a disk that needs it: the programs with their points.
    Ready(Vec<(String, Later)>),
    /// They are: each with whether their end is seen, too.
    Attached(Vec<(String, bool)>),
    /// They cannot be, for this reason; disks that would need it.
    Refused(Refusal, Vec<String>),
}

/// A point that is attached to after BTF was read and dropped.
#[derive(Clone, Copy)]
pub(super) enum Later {
    /// Typed by BTF.
    Typed(&'static str, TypeId),
    /// Untyped.
    Raw(&'static str),
}

/// A completion is waited for before what completes.
const PROGRAMS: [(&str, &str); 2] = [("bio_complete", "block_bio_complete"), ("bio_queue", "block_bio_queue")];

impl Stacked {
    /// Looks up what is to be attached later.
    ///
    /// # Errors
    /// When this kernel has no such tracepoint.
    pub(super) fn ready(btf: &Btf, rung: Rung) -> Result<Self, Refusal> {
        let later = |(what, tracepoint)| {
            let (program, point) = types::program(btf, rung, what, tracepoint, "bio")?;
            Ok((
                program,
                if let Point::Typed(_, id) = point { Later::Typed(tracepoint, id) } else { Later::Raw(tracepoint) },
            ))
        };
        PROGRAMS.into_iter().map(later).collect::<Result<_, _>>().map(Self::Ready)
    }

    /// Bios cannot be followed.
    #[must_use]
    pub(super) fn refused(refusal: Refusal) -> Self {
        Self::Refused(refusal, Vec::new())
    }

    /// Why not, if not.
    #[must_use]
    pub(super) fn refusal(&self) -> Option<&str> {
        match self {
            Self::Refused(refusal, _) => Some(&refusal.reason),
            Self::Ready(_) | Self::Attached(_) => None,
        }
    }

    /// Looks for disks that make no requests, and attaches when there is one.
    pub(super) fn look(&mut self, object: &mut Object, disks: &mut Disks, host: &Host) {
        let found = disks.without_requests(&host.files);
        match self {
            Self::Ready(_) if found.is_empty() => {}
            Self::Ready(programs) => {
                let attached = programs.iter().try_for_each(|(program, later)| {
                    let point = match *later {
                        Later::Typed(name, id) => Point::Typed(name, id),
                        Later::Raw(name) => Point::Raw(name),
                    };
                    object.attach(program, point)
                });
                *self = match attached {
                    Ok(()) => Self::Attached(found.into_iter().map(|name| (name, true)).collect()),
                    Err(refusal) => {
                        tracing::warn!("block_io: {} not measured: {}", found.join(", "), refusal.reason);
                        Self::Refused(refusal, found)
                    }
                };
            }
            Self::Attached(known) => *known = found.into_iter().map(|name| (name, true)).collect(),
            Self::Refused(_, known) => *known = found,
        }
    }

    /// Bios of this disk have begun; `completed` says whether any was seen to end. Of those that are handed on to another disk as
    /// they are, some kernels do not tell: raid0 on 5.10.
    pub(super) fn note(&mut self, name: &str, completed: bool) {
        if let Self::Attached(disks) = self
            && let Some((_, is_seen)) = disks.iter_mut().find(|(disk, _)| disk == name)
        {
            *is_seen = completed;
        }
    }

    /// Says which of these disks are measured.
    pub(super) fn collect(&self, out: &mut Batch) {
        match self {
            Self::Ready(_) => {}
            Self::Attached(disks) => {
                disks.iter().for_each(|(disk, seen)| out.gauge(&MEASURED, [disk], f64::from(u8::from(*seen))));
            }
            Self::Refused(_, disks) => disks.iter().for_each(|disk| out.gauge(&MEASURED, [disk], 0.0)),
        }
    }
}
