//! Against floods: what IPVS has as `drop_packet`, `drop_entry` and `secure_tcp` (`ip_vs_ctl.c`, `ip_vs_conn.c`), and a
//! limit of new flows.
//!
//! The kernel looks every second at how many pages of memory are free; Weir, whose memory is taken at the start, looks at
//! how many entries of the worker's table are.

use super::Core;
use crate::flow::entry::Entry;
use crate::flow::state::State as FlowState;
use crate::snapshot::{Defence, Settings, Snapshot};
use crate::time::{TICKS_PER_SECOND, Tick};

/// Of the table, the part that `drop_entry` looks at in a second.
const SHARE: u32 = 32;
/// Slots that it looks at in one turn.
const SLOTS_A_TURN: u32 = 64;
/// Ticks without a packet before `drop_entry` takes more than half-open flows.
const IDLE_TICKS: u32 = 60 * TICKS_PER_SECOND;
/// Packets from the client beyond which it takes no flow.
const FEW_PACKETS: usize = 8;

/// What is on, and where it stands.
#[derive(Debug, Default)]
pub(super) struct State {
    /// When all was decided last.
    decided: Option<Tick>,
    /// One of so many packets that would open a flow is dropped; 0: none.
    drop_rate: u32,
    /// Packets until then.
    drop_left: u32,
    drop_entry: bool,
    secure_tcp: bool,
    /// Slots that `drop_entry` has still to look at.
    due: u32,
    /// Of its generator.
    random: u64,
    /// Flows with so many packets that `drop_entry` still spares, by that number.
    spare: [u16; FEW_PACKETS + 1],
    tokens: Tokens,
}

impl State {
    /// Whether `secure_tcp` is on at present.
    #[inline]
    pub(super) fn secure_tcp(&self) -> bool {
        self.secure_tcp
    }

    /// Whether any packet may open a flow, as far as defences go.
    #[inline]
    pub(super) fn is_open(&self, settings: &Settings) -> bool {
        self.drop_rate == 0 && settings.new_flows_per_s == 0
    }

    /// Whether `drop_packet` takes this packet, which would open a flow (`ip_vs_todrop`).
    pub(super) fn drops_packet(&mut self) -> bool {
        if self.drop_rate == 0 {
            return false;
        }
        self.drop_left = self.drop_left.saturating_sub(1);
        let drops = self.drop_left == 0;
        if drops {
            self.drop_left = self.drop_rate;
        }
        drops
    }

    /// Whether the limit of new flows lets one more be opened.
    pub(super) fn lets_open(&mut self, now: Tick, settings: &Settings) -> bool {
        settings.new_flows_per_s == 0 || self.tokens.take(now, settings.new_flows_per_s)
    }

    /// Switches each defence on or off (`update_defense_level`). `free` are the entries that are.
    fn decide(&mut self, free: usize, settings: &Settings) {
        let threshold = settings.amemthresh;
        let lacking = usize::try_from(threshold).unwrap_or(usize::MAX).saturating_sub(free);
        let is_on = |defence| match defence {
            Defence::Off => false,
            Defence::Automatic | Defence::Engaged => lacking > 0,
            Defence::Always => true,
        };
        self.drop_entry = is_on(settings.drop_entry);
        self.secure_tcp = is_on(settings.secure_tcp);
        match settings.drop_packet {
            Defence::Always => self.drop_rate = settings.am_droprate,
            automatic if is_on(automatic) => {
                self.drop_rate = threshold / u32::try_from(lacking).unwrap_or(u32::MAX).max(1);
                self.drop_left = self.drop_rate;
            }
            _ => self.drop_rate = 0,
        }
    }

    /// Whether an idle flow with so many packets goes now: one of as many flows as it had packets (`todrop_entry`).
    fn takes_idle(&mut self, packets: u16) -> bool {
        let Some(spare) = self.spare.get_mut(usize::from(packets)).filter(|_| packets > 0) else {
            return false;
        };
        let takes = *spare <= 1;
        *spare = if takes { packets } else { *spare - 1 };
        takes
    }

    /// A random slot below `high`.
    fn draw(&mut self, high: u32) -> u32 {
        // Knuth's generator: The Art of Computer Programming, volume 2, section 3.3.4.
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u32::try_from((u128::from(self.random) * u128::from(high)) >> 64).unwrap_or_default()
    }
}

/// A bucket of tokens, one for each flow that may be opened; it holds those of a second.
#[derive(Debug, Default)]
struct Tokens {
    /// Up to when it was filled.
    filled: Option<Tick>,
    /// In parts of a token, as many as a second has ticks.
    parts: u64,
}

impl Tokens {
    fn take(&mut self, now: Tick, per_second: u32) -> bool {
        const PARTS: u64 = TICKS_PER_SECOND as u64;

        let rate = u64::from(per_second);
        let ticks =
            self.filled.map_or(TICKS_PER_SECOND, |filled| now.0.wrapping_sub(filled.0).min(TICKS_PER_SECOND));
        self.filled = Some(now);
        self.parts = (self.parts + rate * u64::from(ticks)).min(rate * PARTS);
        let has_one = self.parts >= PARTS;
        if has_one {
            self.parts -= PARTS;
        }
        has_one
    }
}

impl Core {
    /// Decides every second which defences are on, and does a bounded piece of `drop_entry`'s work.
    pub(super) fn defend(&mut self, now: Tick, tables: &Snapshot) {
        let state = &mut self.defence;
        if state.decided.is_none_or(|decided| now.0.wrapping_sub(decided.0) >= TICKS_PER_SECOND) {
            state.decided = Some(now);
            state.decide(self.flows.capacity().saturating_sub(self.flows.len()), &tables.settings);
            state.due = if state.drop_entry { self.flows.high_water().div_ceil(SHARE) } else { 0 };
        }
        if self.defence.due > 0 {
            self.drop_entries(now, tables);
        }
    }

    #[cold]
    fn drop_entries(&mut self, now: Tick, tables: &Snapshot) {
        let count = self.defence.due.min(SLOTS_A_TURN);
        self.defence.due -= count;
        for _ in 0..count {
            let slot = self.defence.draw(self.flows.high_water());
            let Some(entry) = self.flows.entry(slot) else { continue };
            if goes(entry, &mut self.defence, now, tables) {
                self.setup.stats.flows_dropped.add(1);
                self.kill(slot);
            }
        }
    }
}

/// Whether `drop_entry` takes this flow (`ip_vs_random_dropentry`).
fn goes(entry: &Entry, state: &mut State, now: Tick, tables: &Snapshot) -> bool {
    match entry.state {
        FlowState::SynRecv | FlowState::SynAck | FlowState::SctpInit1 | FlowState::SctpInit => return true,
        FlowState::Established | FlowState::SctpEstablished | FlowState::Udp => {}
        _ => return false,
    }
    let full = now.after_seconds(tables.timeouts.of(entry.state));
    let idle_ticks = full.0.wrapping_sub(entry.expires.0);
    // More than that is a flow whose time was longer than it is by now.
    (IDLE_TICKS..u32::MAX / 2).contains(&idle_ticks) && state.takes_idle(entry.packets())
}
