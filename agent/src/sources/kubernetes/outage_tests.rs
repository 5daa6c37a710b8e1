use super::*;

const SETTLE: Duration = Duration::from_secs(1);
const TOGETHER: Duration = Duration::from_secs(30);

/// Kinds, a clock that tests turn, and when the server was last heard of each kind.
struct Bench {
    outage: Outage,
    start: Instant,
    now: Instant,
    heard: Vec<Option<Instant>>,
}

impl Bench {
    fn new(kinds: usize) -> Self {
        let start = Instant::now();
        Self { outage: Outage::new(kinds, SETTLE, TOGETHER), start, now: start, heard: vec![None; kinds] }
    }

    fn wait(&mut self, milliseconds: u64) -> bool {
        self.now += Duration::from_millis(milliseconds);
        let heard = self.heard.clone();
        self.outage.look(self.now, |kind| heard[kind]);
        self.outage.holds()
    }

    fn lose(&mut self, kinds: &[usize]) {
        for kind in kinds {
            self.outage.lose(*kind, self.now, false);
        }
        self.wait(1);
    }

    fn hear(&mut self, kind: usize) {
        self.heard[kind] = Some(self.now);
        self.wait(0);
    }

    fn list(&mut self, kind: usize) {
        self.hear(kind);
        self.outage.begin_list(kind);
        self.outage.know(kind, false);
        self.wait(1);
    }
}

#[test]
fn one_kind_alone_that_fails_delays_nobody() {
    let mut bench = Bench::new(3);
    bench.lose(&[1]);
    assert!(!bench.wait(1000));
    bench.list(1);
    assert!(!bench.outage.holds());
}

#[test]
fn after_an_outage_everything_waits_until_the_last_kind_has_been_listed() {
    let mut bench = Bench::new(3);
    bench.lose(&[0, 1]);
    assert!(bench.outage.holds(), "also of the third kind, whose connection may be dead without its knowing");
    bench.lose(&[2]);
    assert!(bench.wait(600_000), "however long the server is away");
    bench.list(0);
    bench.list(2);
    assert!(bench.wait(20_000));
    bench.list(1);
    assert!(!bench.outage.holds());
    assert!((0..3).all(|kind| !bench.outage.is_late(kind)));
}

#[test]
fn a_watch_that_goes_on_is_waited_for_until_it_brings_nothing_new() {
    let mut bench = Bench::new(2);
    bench.lose(&[0, 1]);
    bench.list(1);
    bench.hear(0);
    assert!(bench.wait(900));
    bench.outage.bring(0, bench.now);
    assert!(bench.wait(900), "there was news");
    assert!(!bench.wait(100));
}

#[test]
fn a_watch_that_always_brings_something_is_not_waited_for_without_end() {
    let mut bench = Bench::new(2);
    bench.lose(&[0, 1]);
    bench.list(1);
    bench.hear(0);
    let began = bench.now;
    while bench.wait(100) {
        bench.outage.bring(0, bench.now);
    }
    assert_eq!(bench.now - began, SETTLE * BUSY);
    assert!(!bench.outage.is_late(0));
}

#[test]
fn a_watch_that_fails_again_or_is_told_to_list_has_not_caught_up() {
    let mut bench = Bench::new(2);
    bench.lose(&[0, 1]);
    bench.list(1);
    bench.hear(0);
    bench.wait(500);
    bench.lose(&[0]);
    assert!(bench.wait(900));
    bench.hear(0);
    bench.outage.lose(0, bench.now, true);
    bench.wait(1);
    bench.hear(0);
    assert!(bench.wait(5000), "only a list will do");
    bench.list(0);
    assert!(!bench.outage.holds());
}

#[test]
fn a_kind_that_does_not_come_back_is_late_and_then_delays_nobody() {
    let mut bench = Bench::new(3);
    bench.lose(&[0, 1, 2]);
    bench.wait(100_000);
    bench.list(0);
    bench.list(2);
    assert!(bench.wait(29_000));
    assert!(!bench.outage.is_late(1));
    assert!(!bench.wait(1_000));
    assert!(bench.outage.is_late(1));
    bench.lose(&[1, 2]);
    assert!(!bench.outage.holds(), "one of the two is late already");
    bench.list(1);
    assert!(!bench.outage.is_late(1));
}

#[test]
fn the_time_runs_only_while_the_server_answers() {
    let mut bench = Bench::new(3);
    bench.lose(&[0, 1, 2]);
    bench.list(0);
    assert!(bench.wait(29_000));
    bench.lose(&[0]);
    assert!(bench.wait(600_000), "it is away again");
    bench.list(0);
    assert!(bench.wait(29_000));
    bench.list(1);
    bench.list(2);
    assert!(!bench.outage.holds());
}

#[test]
fn who_was_late_is_waited_for_again_after_the_next_outage() {
    let mut bench = Bench::new(2);
    bench.lose(&[0, 1]);
    bench.list(0);
    bench.wait(TOGETHER.as_millis().try_into().unwrap());
    assert!(bench.outage.is_late(1) && !bench.outage.holds());
    bench.lose(&[0]);
    assert!(bench.outage.holds() && !bench.outage.is_late(1));
    bench.list(0);
    assert!(bench.outage.holds());
    bench.list(1);
    assert!(!bench.outage.holds());
}

#[test]
fn a_kind_that_fails_alone_for_long_does_not_delay_another_that_fails_for_a_moment() {
    let mut bench = Bench::new(3);
    bench.lose(&[1]);
    bench.wait(31_000);
    assert!(!bench.outage.is_late(1), "nobody waited for it");
    bench.lose(&[2]);
    assert!(!bench.outage.holds());
}

#[test]
fn a_kind_that_the_server_did_not_have_is_looked_for_before_an_outage_is_over() {
    let mut bench = Bench::new(3);
    bench.outage.know(2, true);
    bench.lose(&[0, 1]);
    bench.list(0);
    bench.list(1);
    assert!(bench.outage.holds(), "it may be there by now, with policies");
    bench.outage.know(2, true);
    assert!(!bench.wait(1));
    assert!(bench.start < bench.now);
}
