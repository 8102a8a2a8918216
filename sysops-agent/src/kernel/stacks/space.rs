//! One process: where it has code, and the rules that lead through it. Which stacks it has come by, is left to the list in
//! `mod.rs`.

use std::collections::HashMap;
use std::sync::Arc;

use sysops_common::stack::{Copied, FRAMES_MAX, Rule, StackProcess, Walk, place, way};

use super::images::{Code, Images, Loaded};
use super::maps::{self, Mapping};
use super::table::{Context, FRAME_POINTER, LAST, NOWHERE, Said};
use crate::host::Host;

/// Rules that one process may have.
const RULES_MAX: usize = 1 << 16;
/// Stacks of a process that may lead nowhere between two refreshes, until no more of them are handed over.
const STUCK_MAX: u32 = 256;

/// What is known of a process.
pub(super) struct Space {
    /// [`Walk::identity`].
    pub identity: u64,
    /// Names its rules.
    pub epoch: u32,
    code: Vec<Piece>,
    rules: HashMap<(bool, u64), Rule>,
    /// Stacks that led nowhere and to no new rule since it was last refreshed.
    pub stuck: u32,
    /// How often it was looked at since then for code that is not known.
    pub looks: u32,
}

struct Piece {
    mapping: Mapping,
    /// `None`: not asked for yet.
    loaded: Option<Code>,
}

/// A frame by its file: an address as the file has it; or in memory, where there is no file.
#[derive(Clone)]
pub(super) struct Place {
    /// The file.
    pub loaded: Option<Arc<Loaded>>,
    /// The address.
    pub offset: u64,
}

/// How far a stack could be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// To its outermost frame, or to the last one that is told apart or can be told.
    Reached,
    /// To the end of what was copied.
    Cut,
    /// To where no code was when the process was last looked at.
    Strange,
}

/// The file that a stack leads through cannot be had, so that nobody knows who called what is in it.
#[derive(Debug)]
pub(super) struct Unread;

/// What came of following a stack.
pub(super) struct Followed {
    /// Innermost first.
    pub ips: Vec<u64>,
    /// Whether it is all.
    pub end: End,
    /// Rules that were made on the way.
    pub made: Vec<((bool, u64), Rule)>,
}

impl Space {
    /// The process as /proc shows it now; `None` when it is gone.
    #[must_use]
    pub(super) fn read(host: &Host, pid: u32, identity: u64, epoch: u32) -> Option<Self> {
        let code = code(host, pid)?.into_iter().map(|mapping| Piece { mapping, loaded: None }).collect();
        Some(Self { identity, epoch, code, rules: HashMap::new(), stuck: 0, looks: 0 })
    }

    /// Looks again where it has code. False when code went away or became other code: its rules may be wrong.
    pub(super) fn look(&mut self, host: &Host, pid: u32) -> bool {
        let Some(now) = code(host, pid) else { return true };
        if self.code.iter().map(|piece| &piece.mapping).eq(&now) {
            return true;
        }
        let holds = self.code.iter().all(|piece| now.contains(&piece.mapping));
        let mut known: HashMap<u64, Piece> = self.code.drain(..).map(|piece| (piece.mapping.start, piece)).collect();
        let piece = |mapping: Mapping| match known.remove(&mapping.start) {
            Some(piece) if piece.mapping == mapping => piece,
            _ => Piece { mapping, loaded: None },
        };
        self.code = now.into_iter().map(piece).collect();
        // Of what was nowhere there may be code now.
        self.rules.retain(|_, rule| holds && *rule != NOWHERE);
        holds
    }

    /// Too many of its stacks lead nowhere: those that cannot be walked are not handed over until it is refreshed.
    #[must_use]
    pub(super) fn is_silent(&self) -> bool {
        self.stuck >= STUCK_MAX
    }

    /// As the kernel side knows it.
    #[must_use]
    pub(super) fn process(&self) -> StackProcess {
        StackProcess { identity: self.identity, epoch: self.epoch, silent: u32::from(self.is_silent()) }
    }

    /// All addresses that it has rules for.
    pub(super) fn ruled(&self) -> impl Iterator<Item = (bool, u64)> {
        self.rules.keys().copied()
    }

    /// Follows a stack on from where the kernel came to, through what it copied.
    pub(super) fn follow(&mut self, copied: &Copied, bits: u32, access: &mut Access<'_>) -> Followed {
        let walk = &copied.walk;
        let known = (walk.frames as usize).min(FRAMES_MAX);
        let mut followed = Followed { ips: walk.ips[..known].to_vec(), end: End::Reached, made: Vec::new() };
        let (mut ip, mut sp, mut bp, mut lr) = (walk.ip, walk.sp, walk.bp, walk.lr);
        let mut first = walk.first != 0;
        while followed.ips.len() < FRAMES_MAX {
            let Some(rule) = self.rule(first, ip, access, &mut followed.made) else {
                followed.end = End::Strange;
                return followed;
            };
            if rule.ways & way::NOWHERE != 0 {
                return followed;
            }
            followed.ips.push(ip);
            if rule.ways & way::LAST != 0 || (rule.ways & way::SP_FROM_BP != 0 && bp < sp) {
                return followed;
            }
            let Some((caller_ip, caller_sp, caller_bp)) = step(&rule, (sp, bp, lr), copied) else {
                followed.end = End::Cut;
                return followed;
            };
            if caller_ip == 0 || caller_sp <= sp {
                return followed;
            }
            (ip, sp, bp, lr) = (place(caller_ip, bits), caller_sp, caller_bp, 0);
            first = rule.ways & way::SIGNAL != 0;
        }
        followed
    }

    /// Where the frames of a stack are. The address of a frame that called another lies in its call, not behind it.
    ///
    /// # Errors
    /// When one of them is in a file that cannot be had.
    pub(super) fn places(&mut self, ips: &[u64], access: &mut Access<'_>) -> Result<Vec<Place>, Unread> {
        let mut first = true;
        let mut places = Vec::with_capacity(ips.len());
        for &ip in ips {
            let address = lookup(first, ip);
            let loaded = match self.load(address, access) {
                Some(Code::Program(loaded)) => Some(loaded),
                Some(Code::Unread) => return Err(Unread),
                Some(Code::Other) | None => None,
            };
            let offset = loaded
                .as_ref()
                .zip(self.piece(address))
                .and_then(|(loaded, piece)| loaded.elf.address(address - piece.mapping.start + piece.mapping.offset));
            places.push(match offset {
                Some(offset) => Place { loaded, offset },
                None => Place { loaded: None, offset: address },
            });
            first = self.rules.get(&(first, ip)).is_some_and(|rule| rule.ways & way::SIGNAL != 0);
        }
        Ok(places)
    }

    fn rule(
        &mut self,
        first: bool,
        ip: u64,
        access: &mut Access<'_>,
        made: &mut Vec<((bool, u64), Rule)>,
    ) -> Option<Rule> {
        if let Some(rule) = self.rules.get(&(first, ip)) {
            return Some(*rule);
        }
        let rule = self.make(lookup(first, ip), access)?;
        if self.rules.len() < RULES_MAX {
            self.rules.insert((first, ip), rule);
            made.push(((first, ip), rule));
        }
        Some(rule)
    }

    /// `None` when the code at the address cannot be read just now.
    fn make(&mut self, address: u64, access: &mut Access<'_>) -> Option<Rule> {
        let Some(piece) = self.piece(address) else { return access.complete.then_some(NOWHERE) };
        // What a process makes itself has no tables; those that make code keep frame pointers in it. The kernel's own pages
        // call nothing.
        if !piece.mapping.is_file() {
            return Some(if piece.mapping.path.starts_with("[v") { LAST } else { FRAME_POINTER });
        }
        let in_file = address - piece.mapping.start + piece.mapping.offset;
        let Some(Code::Program(loaded)) = self.load(address, access) else { return Some(LAST) };
        let said = match (&loaded.table, loaded.elf.address(in_file)) {
            (Some(table), Some(address)) => table.say(address, access.context),
            _ => Said::Nothing,
        };
        Some(match said {
            Said::Rule(rule) => rule,
            Said::Nothing if loaded.elf.go => FRAME_POINTER,
            // Frame pointers where no one promised them would skip a frame: what is known ends here.
            Said::Nothing | Said::TooMuch => LAST,
        })
    }

    /// What is behind the address; `None` where there is no file.
    fn load(&mut self, address: u64, access: &mut Access<'_>) -> Option<Code> {
        let index = self.index(address)?;
        let piece = &mut self.code[index];
        if !piece.mapping.is_file() {
            return None;
        }
        let Access { host, pid, images, .. } = access;
        Some(piece.loaded.get_or_insert_with(|| images.load(host, *pid, &piece.mapping)).clone())
    }

    fn piece(&self, address: u64) -> Option<&Piece> {
        self.index(address).map(|index| &self.code[index])
    }

    fn index(&self, address: u64) -> Option<usize> {
        let after = self.code.partition_point(|piece| piece.mapping.start <= address);
        let index = after.checked_sub(1)?;
        (address < self.code[index].mapping.end).then_some(index)
    }
}

/// What is needed to make a rule.
pub(super) struct Access<'a> {
    /// The machine.
    pub host: &'a Host,
    /// The process.
    pub pid: u32,
    /// All files.
    pub images: &'a mut Images,
    /// Memory for rows.
    pub context: &'a mut Context,
    /// All code of the process is known: where none is known there is none.
    pub complete: bool,
}

fn code(host: &Host, pid: u32) -> Option<Vec<Mapping>> {
    let text = host.files.read(&host.files.proc(&format!("{pid}/maps"))).ok()?;
    // A process that is on its way out has none.
    Some(maps::parse(&text)).filter(|found| !found.is_empty())
}

/// A call that never returns may be the last instruction of a function: the return address belongs to the next one.
fn lookup(first: bool, ip: u64) -> u64 {
    if first { ip } else { ip.wrapping_sub(1) }
}

/// The same as in the kernel, on what was copied.
fn step(rule: &Rule, (sp, bp, lr): (u64, u64, u64), copied: &Copied) -> Option<(u64, u64, u64)> {
    let has = |bit: u32| rule.ways & bit != 0;
    let plus = |register: u64, by: i32| register.wrapping_add_signed(i64::from(by));
    let read = |address: u64| word(copied, address);
    let mut caller = plus(if has(way::SP_FROM_BP) { bp } else { sp }, rule.sp);
    if has(way::SP_IN_MEMORY) {
        caller = read(caller)?;
    }
    let ip = if has(way::RA_IN_REGISTER) {
        lr
    } else {
        read(plus(if has(way::RA_FROM_SP) { sp } else { caller }, rule.ra))?
    };
    let caller_bp = if has(way::BP_SAME) {
        bp
    } else {
        let from = if has(way::BP_FROM_SP) { sp } else { caller };
        read(plus(if has(way::BP_FROM_BP) { bp } else { from }, rule.bp))?
    };
    Some((ip, caller, caller_bp))
}

fn word(copied: &Copied, address: u64) -> Option<u64> {
    let Walk { base, copied: length, .. } = copied.walk;
    let bytes = copied.bytes.get(..length as usize)?;
    let at = usize::try_from(address.checked_sub(base)?).ok()?;
    Some(u64::from_ne_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}
