//! Whether the kinds have been out of touch, and what they say must wait until all of them are back.
//!
//! The invariant: after an outage the consumer is told everything as one change. Kinds come back one by one, and pods
//! that are known before their policies would be open. One kind alone that fails is no outage: the others go on. Who is
//! not back in time is not waited for any longer, and that is reported.
//!
//! Nothing here reads a clock or holds an event; the worker does both.

use std::time::{Duration, Instant};

/// How a kind stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// What is known of it is what the server has, as far as one can know.
    InTouch {
        /// The server does not have the kind, and is asked for it only now and then.
        missing: bool,
    },
    /// Something failed, and nothing says yet that everything since then is known.
    Lost(Loss),
    /// As before, but it is not waited for any longer.
    Late(Loss),
}
use Standing::{InTouch, Late, Lost};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Loss {
    /// When something failed first.
    since: Instant,
    /// When something failed last.
    at: Instant,
    /// Only a complete list will do: it does not go on from where it was.
    must_list: bool,
    /// When it was seen that the server answers for it again.
    back: Option<Instant>,
    /// When it brought something last, since it failed.
    news: Option<Instant>,
    /// Whether the others waited for it.
    awaited: bool,
}

impl Loss {
    fn new(at: Instant, must_list: bool) -> Self {
        Self { since: at, at, must_list, back: None, news: None, awaited: false }
    }

    fn again(self, at: Instant, must_list: bool) -> Self {
        Self { at, must_list: must_list || self.must_list, back: None, news: None, ..self }
    }

    /// Whether it went on from where it was and has caught up, as far as one can know: it brings nothing new, or has been
    /// bringing news for so long that what is old must be among it.
    fn has_caught_up(&self, now: Instant, settle: Duration) -> bool {
        self.back.is_some_and(|back| {
            let quiet_since = self.news.map_or(back, |news| news.max(back));
            now.saturating_duration_since(quiet_since) >= settle
                || now.saturating_duration_since(back) >= settle * BUSY
        })
    }
}

/// A watch that is never quiet has caught up after so many times the pause that another must make.
const BUSY: u32 = 10;

/// The standing of all kinds.
#[derive(Debug)]
pub(super) struct Outage {
    kinds: Vec<Standing>,
    /// See [`super::Pace`].
    settle: Duration,
    together: Duration,
    /// Since when what kinds say must wait.
    began: Option<Instant>,
    /// Since when the server has been answering again.
    returning: Option<Instant>,
}

impl Outage {
    /// For a number of kinds, all of them in touch.
    pub fn new(kinds: usize, settle: Duration, together: Duration) -> Self {
        Self {
            kinds: vec![InTouch { missing: false }; kinds],
            settle,
            together,
            began: None,
            returning: None,
        }
    }

    /// A kind failed. If `must_list`, what is known of it is too old to go on from.
    pub fn lose(&mut self, kind: usize, at: Instant, must_list: bool) {
        let Some(standing) = self.kinds.get_mut(kind) else { return };
        *standing = match *standing {
            InTouch { missing } => Lost(Loss::new(at, must_list || missing)),
            Lost(before) => Lost(before.again(at, must_list)),
            Late(before) => Late(before.again(at, must_list)),
        };
        if self.began.is_none() && self.waited_for() > 1 {
            self.begin(at);
        }
    }

    fn begin(&mut self, at: Instant) {
        self.began = Some(at);
        for standing in &mut self.kinds {
            // It may be there by now, with policies, and is looked for when the others come back.
            if *standing == (InTouch { missing: true }) {
                *standing = Lost(Loss::new(at, true));
            }
        }
    }

    /// A list of a kind begins: it does not go on from where it was.
    pub fn begin_list(&mut self, kind: usize) {
        if let Some(Lost(loss) | Late(loss)) = self.kinds.get_mut(kind) {
            loss.must_list = true;
        }
    }

    /// A kind brought something.
    pub fn bring(&mut self, kind: usize, at: Instant) {
        if let Some(Lost(loss) | Late(loss)) = self.kinds.get_mut(kind) {
            loss.news = Some(at);
        }
    }

    /// A kind was listed to the end, or the server certainly does not have it.
    pub fn know(&mut self, kind: usize, missing: bool) {
        if let Some(standing) = self.kinds.get_mut(kind) {
            *standing = InTouch { missing };
        }
    }

    /// Looks who is back; `heard` is when the server was last heard of a kind.
    pub fn look(&mut self, now: Instant, heard: impl Fn(usize) -> Option<Instant>) {
        let (settle, together) = (self.settle, self.together);
        let heard_since = |kind: usize, moment: Instant| heard(kind).is_some_and(|heard| heard > moment);
        let lasts = |since: Instant| now.saturating_duration_since(since) >= together;
        let alone = self.began.is_none();
        for (kind, standing) in self.kinds.iter_mut().enumerate() {
            let (Lost(loss) | Late(loss)) = standing else { continue };
            if heard_since(kind, loss.at) {
                loss.back.get_or_insert(now);
            }
            let loss = *loss;
            if !loss.must_list && loss.has_caught_up(now, settle) {
                *standing = InTouch { missing: false };
            } else if alone && lasts(loss.since) {
                // One that fails for long delays no other when that fails, too.
                *standing = Late(loss);
            }
        }
        let in_touch = self.kinds.iter().any(|standing| matches!(standing, InTouch { .. }));
        if !in_touch {
            // Nobody is late any more: they will come back together.
            for standing in &mut self.kinds {
                if let Late(loss) = *standing {
                    *standing = Lost(Loss { awaited: false, ..loss });
                }
            }
            if self.began.is_none() {
                self.begin(now);
            }
        }
        if self.waited_for() == 0 {
            (self.began, self.returning) = (None, None);
        }
        let Some(began) = self.began else { return };
        let answers = self.kinds.iter().enumerate().any(|(kind, standing)| match standing {
            InTouch { .. } => heard_since(kind, began),
            Lost(loss) | Late(loss) => loss.back.is_some(),
        });
        if !answers {
            self.returning = None;
            return;
        }
        let returning = *self.returning.get_or_insert(now);
        if in_touch && lasts(returning) {
            for standing in &mut self.kinds {
                if let Lost(loss) = *standing {
                    *standing = Late(Loss { awaited: true, ..loss });
                }
            }
            (self.began, self.returning) = (None, None);
        }
    }

    fn waited_for(&self) -> usize {
        self.kinds.iter().filter(|standing| matches!(standing, Lost(_))).count()
    }

    /// Whether what the kinds say must wait.
    pub const fn holds(&self) -> bool {
        self.began.is_some()
    }

    /// Whether time alone may end that.
    pub const fn ends_by_time(&self) -> bool {
        self.returning.is_some()
    }

    /// Whether the others waited for a kind in vain.
    pub fn is_late(&self, kind: usize) -> bool {
        matches!(self.kinds.get(kind), Some(Late(Loss { awaited: true, .. })))
    }
}

#[cfg(test)]
#[path = "outage_tests.rs"]
mod tests;
