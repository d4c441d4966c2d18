//! Persistence templates of one worker: which backend a client's flows go to (IPVS: connection templates).
//!
//! A template is found by protocol, masked client address, VIP and port, and, where it is a call's, by that. It lives as long as a flow holds it, and for
//! the service's timeout after the last one was opened. The table has a limit and its memory is taken at start, but
//! touched only as clients come: without persistent services it costs nothing.

use std::net::IpAddr;

use super::call::{self, CallId};
use super::key::FlowKey;
use super::pool::{self, Pool};
use super::table::Reserve;
use crate::ids::{BackendId, ServiceId};
use crate::snapshot::Mode;
use crate::time::{TICKS_PER_SECOND, Tick};

/// Index of a template.
pub type Index = pool::Index;

/// No template.
pub const NONE: Index = pool::NONE;

/// Seconds until a template whose time is up is looked at again while flows hold it, and its timeout from then on
/// (`ip_vs_conn_expire`: `expire_later`).
const RETRY_S: u32 = 60;

/// Templates looked at for one that may go when the table is full.
const EVICTION_TRIES: u32 = 64;

/// Calls at most whose Call-IDs are kept to be shown: 16 MiB of them, touched as calls come.
const CALL_IDS: usize = 1 << 16;

/// Seconds in which the sweep passes over the whole table.
const ROUND_S: u32 = 10;

/// Templates that one sweep looks at.
const A_TURN: u32 = 64;

/// A client and its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Template {
    /// Client to VIP: the client's address masked, its port 0. Of a mark: protocol 0, and the mark as the VIP.
    pub key: FlowKey,
    /// The hash of its call's Call-ID; [`call::NONE`] for a client's.
    pub call: u128,
    /// The service that it was made for.
    pub service: ServiceId,
    /// The backend.
    pub backend: BackendId,
    /// The backend's address and, where the template is for one port, its port; else 0.
    pub to: (IpAddr, u16),
    /// How the backend gets its packets.
    pub mode: Mode,
    /// When its time is up.
    pub expires: Tick,
    /// Whether it stands for one connection of data that was announced, and not for a client.
    pub announced: bool,
    /// Whether one of its flows was established (TCP) or answered (UDP): IPVS's state ASSURED.
    pub assured: bool,
    /// Flows that hold it.
    flows: u32,
    /// What its time is prolonged by when a flow is opened.
    timeout_s: u32,
    /// The next one in its chain; free: the next free one.
    next: Index,
    /// Where its Call-ID is kept.
    call_id: pool::Index,
    status: Status,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Free,
    /// In the index.
    Valid,
    /// Its backend takes no clients any more: not found, and gone when its time is up.
    Retired,
}

impl Template {
    const FREE: Self = Self {
        key: FlowKey { src: 0, dst: 0, sport: 0, dport: 0, proto: 0, v6: false },
        call: call::NONE,
        service: ServiceId(0),
        backend: BackendId(0),
        to: (IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0),
        mode: Mode::Nat,
        expires: Tick(0),
        announced: false,
        assured: false,
        flows: 0,
        timeout_s: 0,
        next: NONE,
        call_id: pool::NONE,
        status: Status::Free,
    };

    /// Whether its backend takes no clients any more.
    pub fn is_retired(&self) -> bool {
        self.status == Status::Retired
    }
}

const _: () = assert!(size_of::<Template>() <= 128);

/// A call of SIP.
#[derive(Clone, Copy, Debug)]
pub struct Call<'p> {
    /// Its Call-ID.
    pub id: &'p [u8],
    /// The [hash](call::hash) of that.
    pub hash: u128,
}

/// What a template is made of.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the fields are those of a template")]
pub struct NewTemplate<'p> {
    pub key: FlowKey,
    pub call: Option<Call<'p>>,
    pub service: ServiceId,
    pub backend: BackendId,
    pub to: (IpAddr, u16),
    pub mode: Mode,
    pub timeout_s: u32,
    pub announced: bool,
}

/// A keyed hash of what a template is found by. `seed` is that of [`FlowKey::hash`].
pub fn hash(key: &FlowKey, call: u128, seed: u64) -> u64 {
    // The call's is a keyed hash itself.
    #[expect(clippy::cast_possible_truncation, reason = "its low half is wanted")]
    let call = call as u64;
    key.hash(seed) ^ call
}

/// The templates of one worker.
#[derive(Debug)]
pub struct Templates {
    /// First template of each chain, its bits inverted: memory of zeros is full of [`NONE`]s.
    heads: Vec<Index>,
    list: Vec<Template>,
    call_ids: Pool<CallId>,
    limit: usize,
    free: Index,
    live: usize,
    seed: u64,
    /// The next one for the sweep, and for an eviction.
    next: Index,
    hand: Index,
    swept: Tick,
    due: u32,
}

impl Templates {
    /// A table for `limit` templates. `seed` keys the hash.
    pub fn new(limit: usize, seed: u64, reserve: &impl Reserve) -> Self {
        let limit = limit.clamp(1, 1 << 30);
        Self {
            heads: vec![!NONE; limit],
            list: reserve.reserve(limit),
            call_ids: Pool::new(limit.min(CALL_IDS), 0, reserve),
            limit,
            free: NONE,
            live: 0,
            seed,
            next: 0,
            hand: 0,
            swept: Tick(0),
            due: 0,
        }
    }

    /// Templates that there are.
    pub fn len(&self) -> usize {
        self.live
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// All templates have an index below this one.
    pub fn high_water(&self) -> usize {
        self.list.len()
    }

    /// The template with this index.
    pub fn get(&self, index: Index) -> Option<&Template> {
        self.list.get(index as usize).filter(|template| template.status != Status::Free)
    }

    /// The Call-ID of a template. `None` for a client's, and where there was no room to keep it.
    pub fn call_id(&self, template: &Template) -> Option<&CallId> {
        self.call_ids.get(template.call_id)
    }

    /// The template of `key` and the `call` with this hash ([`call::NONE`]: of the client). One whose time is up and that
    /// no flow holds is none.
    pub fn find(&mut self, key: &FlowKey, call: u128, now: Tick) -> Option<Index> {
        let mut at = !*self.heads.get(self.chain(key, call))?;
        while let Some(template) = self.list.get(at as usize) {
            if template.key == *key && template.call == call {
                return (!self.is_over(at, now)).then_some(at);
            }
            at = template.next;
        }
        None
    }

    /// Puts a template in place of the one that has its key, if there is one. `None` where the table is full.
    pub fn open(&mut self, new: &NewTemplate<'_>, now: Tick) -> Option<Index> {
        let template = Template {
            key: new.key,
            call: new.call.map_or(call::NONE, |call| call.hash),
            service: new.service,
            backend: new.backend,
            to: new.to,
            mode: new.mode,
            expires: now.after_seconds(new.timeout_s),
            timeout_s: new.timeout_s,
            announced: new.announced,
            status: Status::Valid,
            ..Template::FREE
        };
        let index = if let Some(free) = self.list.get_mut(self.free as usize) {
            let next = std::mem::replace(free, template).next;
            std::mem::replace(&mut self.free, next)
        } else {
            let index = self.high();
            if self.list.len() == self.limit {
                return None;
            }
            self.list.push(template);
            index
        };
        let chain = self.chain(&template.key, template.call);
        let call_id = new.call.and_then(|call| self.call_ids.take(call.id.into())).unwrap_or(pool::NONE);
        if let (Some(head), Some(template)) = (self.heads.get_mut(chain), self.list.get_mut(index as usize)) {
            template.call_id = call_id;
            template.next = !*head;
            *head = !index;
        }
        self.live += 1;
        Some(index)
    }

    /// A flow holds the template from now on, which prolongs its time.
    pub fn hold(&mut self, index: Index, now: Tick) {
        if let Some(template) = self.get_mut(index) {
            template.flows = template.flows.saturating_add(1);
            template.expires = now.after_seconds(template.timeout_s);
        }
    }

    /// A flow holds it no more.
    pub fn release(&mut self, index: Index) {
        if let Some(template) = self.get_mut(index) {
            template.flows = template.flows.saturating_sub(1);
        }
    }

    /// One of its flows is established.
    pub fn assure(&mut self, index: Index) {
        if let Some(template) = self.get_mut(index) {
            template.assured = true;
        }
    }

    /// Its backend takes no clients any more: the client's next flow finds no template.
    pub fn retire(&mut self, index: Index) {
        self.unlink(index);
        if let Some(template) = self.get_mut(index) {
            template.status = Status::Retired;
        }
    }

    /// Whether nobody would miss it: no flow holds it, and none of its flows was ever established.
    pub fn is_idle(&self, index: Index) -> bool {
        self.get(index).is_some_and(|template| template.flows == 0 && !template.assured)
    }

    /// Forgets a template. Returns what it was.
    pub fn close(&mut self, index: Index) -> Option<Template> {
        let template = *self.get(index)?;
        if template.status == Status::Valid {
            self.unlink(index);
        }
        self.call_ids.give_back(template.call_id);
        let free = self.free;
        *self.list.get_mut(index as usize)? = Template { next: free, ..Template::FREE };
        self.free = index;
        self.live -= 1;
        Some(template)
    }

    /// How many templates the sweep is to look at now, so that it passes over all of them in some seconds: a bounded
    /// number.
    pub fn owed(&mut self, now: Tick) -> u32 {
        const ROUND: u32 = ROUND_S * TICKS_PER_SECOND;
        let elapsed = now.0.wrapping_sub(self.swept.0).min(ROUND);
        self.swept = now;
        let owed = (self.list.len() as u64 * u64::from(elapsed)).div_ceil(ROUND.into());
        let owed = u32::try_from(owed).unwrap_or(u32::MAX);
        self.due = self.due.saturating_add(owed).min(self.high());
        let count = self.due.min(A_TURN);
        self.due -= count;
        count
    }

    /// Looks at the next template: its index, if its time is up and no flow holds it.
    pub fn next_over(&mut self, now: Tick) -> Option<Index> {
        let index = if self.next < self.high() { self.next } else { 0 };
        self.next = index + 1;
        self.is_over(index, now).then_some(index)
    }

    /// Whether a template's time is up for good. One that flows hold gets more.
    fn is_over(&mut self, index: Index, now: Tick) -> bool {
        let Some(template) = self.get_mut(index).filter(|template| template.expires.is_due(now)) else {
            return false;
        };
        if template.flows == 0 {
            return true;
        }
        // Retried in step with the first expiry, however seldom somebody looks.
        const RETRY: u32 = RETRY_S * TICKS_PER_SECOND;
        let late = now.0.wrapping_sub(template.expires.0);
        template.timeout_s = RETRY_S;
        template.expires = Tick(now.0.wrapping_add(RETRY - late % RETRY));
        false
    }

    /// An upper bound of all indices, exclusive.
    fn high(&self) -> Index {
        Index::try_from(self.list.len()).unwrap_or(Index::MAX)
    }

    /// One that may go to make room, among the next few: its time is up, or it [is idle](Self::is_idle).
    pub fn evictable(&mut self, now: Tick) -> Option<Index> {
        let high = self.high();
        for _ in 0..EVICTION_TRIES.min(high) {
            let index = if self.hand < high { self.hand } else { 0 };
            self.hand = index + 1;
            if self.is_idle(index) || self.is_over(index, now) {
                return Some(index);
            }
        }
        None
    }

    fn get_mut(&mut self, index: Index) -> Option<&mut Template> {
        self.list.get_mut(index as usize).filter(|template| template.status != Status::Free)
    }

    /// The chain of a key and a call.
    #[expect(clippy::cast_possible_truncation, reason = "below the number of chains")]
    fn chain(&self, key: &FlowKey, call: u128) -> usize {
        ((u128::from(hash(key, call, self.seed)) * self.heads.len() as u128) >> 64) as usize
    }

    /// Takes a template out of its chain.
    fn unlink(&mut self, index: Index) {
        let Some(template) = self.get(index) else { return };
        let (chain, next) = (self.chain(&template.key, template.call), template.next);
        let Some(head) = self.heads.get_mut(chain) else { return };
        if !*head == index {
            *head = !next;
            return;
        }
        let mut at = !*head;
        while let Some(template) = self.list.get_mut(at as usize) {
            if template.next == index {
                template.next = next;
                return;
            }
            at = template.next;
        }
    }
}
