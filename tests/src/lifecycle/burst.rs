//! Many pods that connect as the first thing they do, and what became of each try.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// What a pod prints last.
const END: &str = "all tries are done";
/// A connection that took longer than this lost its first SYN: the kernel sends the second after a second.
const SECOND_SYN: f64 = 0.9;

/// How long a try waits for its connection.
const PATIENCE: f64 = 3.0;

/// Sets `s` to how many SYNs were sent again in this network so far, without starting a program.
const RESENT: &str = "resent() { h=; while read -r k l; do if [ $k = TcpExt: ]; then \
     if [ -z \"$h\" ]; then h=$l; else v=$l; break; fi; fi; done < /proc/net/netstat; \
     set -- $v; for c in $h; do if [ $c = TCPSynRetrans ]; then s=$1; return; fi; shift; done; }; ";

/// What holds a connection, with the connection as its input and output: a line there and back, again and again; it
/// ends when no answer comes, says each answer to descriptor 3, and needs no more after one to a line that was sent when all
/// was tried.
const HELD: &str = "while [ ! -e /end ]; do e=; [ ! -e /tried ] || e=1; echo x; read -t 3 y || exit; \
     read t _ < /proc/uptime; echo \"held $1 $t\" >&3; [ -z \"$e\" ] || : > /end; sleep 0.3; done";

/// Which pods hold a connection: the names that Kubernetes makes up end with a digit in a quarter of all cases.
const HOLDERS: &str = "*[2-9]";

/// The shell script of a pod: tries each target several times, all targets at once, from the first moment, and prints a
/// line a try: target, seconds of the machine's clock before and after, `passed` or `refused`, and how many SYNs the pod
/// has sent again so far. Some pods also hold a connection to the first target from the first moment, open another one when
/// it is cut, and wait after the last try for one more answer, but no longer than `last`.
pub fn script(targets: &[(&str, String)], port: u16, tries: usize, last: Duration) -> String {
    let mut script = format!(
        "{RESENT}try() {{ n=0; while [ $n -lt {tries} ]; do n=$((n+1)); read a _ < /proc/uptime; \
         if nc -w {PATIENCE} \"$2\" {port} -e /bin/true 2>/dev/null; then r=passed; else r=refused; fi; \
         read b _ < /proc/uptime; resent; echo \"try $1 $a $b $r $s\"; \
         [ $r = refused ] || sleep 0.1; done; }}; \
         hold() {{ while [ ! -e /end ]; do read a _ < /proc/uptime; echo \"open $1 $a\"; \
         nc -w 3 \"$2\" {port} -e sh /held \"$1\" 3>&1 2>/dev/null; sleep 0.1; done; }}; "
    );
    if let Some((name, address)) = targets.first() {
        script.extend([format!(
            "h=; case $(hostname) in {HOLDERS}) echo '{HELD}' > /held; hold {name} {address} & h=$!;; esac; "
        )]);
    }
    script.extend(targets.iter().map(|(name, address)| format!("try {name} {address} & p=\"$p $!\"; ")));
    script
        + &format!(
            "wait $p; if [ -n \"$h\" ]; then read a _ < /proc/uptime; echo \"tried all $a\"; touch /tried; n=0; \
             while [ ! -e /end ] && [ $n -lt {} ]; do n=$((n+1)); sleep 0.1; done; touch /end; wait; fi; \
             echo {END}; exec sleep infinity",
            last.as_millis() / 100
        )
}

/// One try.
#[derive(Debug, Clone, PartialEq)]
struct Try {
    from: f64,
    to: f64,
    passed: bool,
    /// How many SYNs the pod had sent again when it was over.
    resent: u64,
}

impl Try {
    /// Whether it was over before its program had the time to send: it waited for as long as it would, and no SYN of the pod was
    /// sent again meanwhile, as the kernel does after a second with one that was dropped. So it is on a machine that is too
    /// busy, and says nothing of verdicts.
    fn was_starved(&self, before: &Self) -> bool {
        !self.passed && self.to - self.from >= PATIENCE && self.resent == before.resent
    }
}

/// What a pod saw of the connection that it held.
#[derive(Debug, Default)]
struct Hold {
    target: String,
    /// When it was opened, and opened again.
    opened: Vec<f64>,
    /// When answers came.
    answers: Vec<f64>,
    /// When the pod had tried all; one more answer was waited for then.
    tried: f64,
}

/// The tries of all pods, by pod and target, and the connections that pods held.
#[derive(Debug, Default)]
pub struct Tries {
    tries: BTreeMap<(String, String), Vec<Try>>,
    held: BTreeMap<String, Hold>,
}

/// What a sequence of tries of many pods says.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub struct Findings {
    /// Sequences: a pod and a target.
    pub sequences: usize,
    /// Tries.
    pub tries: usize,
    /// Forbidden connections that passed before the first that was refused.
    pub passed_early: usize,
    /// Permitted tries that were refused before the first that passed.
    pub refused_early: usize,
    /// Permitted connections that needed a second SYN.
    pub delayed: usize,
    /// SYNs that permitted pods had to send again after every target had answered them once.
    pub lost_late: u64,
    /// Permitted tries whose time was over before they could send anything.
    pub starved: usize,
    /// The longest time from a pod's first try to its first connection, where it is permitted.
    pub longest_wait: f64,
    /// Pods that held a connection from their first moment.
    pub held: usize,
    /// Answers that they got over it.
    pub answers: usize,
    /// How often they had to open it again.
    pub reopened: usize,
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sequences, tries, passed_early, refused_early, delayed, longest_wait, .. } = self;
        let Self { held, answers, reopened, lost_late, starved, .. } = self;
        write!(
            f,
            "{sequences} sequences of {tries} tries: {passed_early} passed before the first refusal, {refused_early} \
             refused before the first answer, {delayed} took a second, longest wait {longest_wait:.2} s, {lost_late} SYNs \
             lost later, {starved} tries could not send in time; {held} pods held a connection: {answers} answers, opened \
             again {reopened} times"
        )
    }
}

impl Tries {
    /// Reads the logs of all pods of a namespace that the kubelet of a node keeps; returns how many pods are done.
    pub fn read(&mut self, logs: &Path, namespace: &str, pods: &str) -> Result<usize> {
        let mut done = 0;
        for folder in fs::read_dir(logs.join("pods")).context("the logs of pods")?.flatten() {
            let name = folder.file_name().to_string_lossy().into_owned();
            let Some(pod) = name.strip_prefix(&format!("{namespace}_")).filter(|pod| pod.starts_with(pods))
            else {
                continue;
            };
            let text = fs::read_to_string(folder.path().join("main/0.log")).unwrap_or_default();
            if text.contains(END) {
                done += 1;
                self.add(pod, &text)?;
            }
        }
        Ok(done)
    }

    fn add(&mut self, pod: &str, log: &str) -> Result<()> {
        // The kubelet's log begins each line with the time, the stream and a mark.
        for line in log.lines().filter_map(|line| Some(line.split_once(" F ")?.1)) {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["try", target, from, to, result, resent] => {
                    let (from, to, resent) = (from.parse()?, to.parse()?, resent.parse()?);
                    let one = Try { from, to, passed: result == "passed", resent };
                    self.tries.entry((pod.to_owned(), target.to_owned())).or_default().push(one);
                }
                [what @ ("open" | "held" | "tried"), target, at] => {
                    let (hold, at) = (self.held.entry(pod.to_owned()).or_default(), at.parse()?);
                    match what {
                        "open" => {
                            target.clone_into(&mut hold.target);
                            hold.opened.push(at);
                        }
                        "held" => hold.answers.push(at),
                        _ => hold.tried = at,
                    }
                }
                _ if line == END => {}
                _ => anyhow::bail!("{pod} logged {line}"),
            }
        }
        Ok(())
    }

    /// What passed although it is forbidden; an error if anything did after the first refusal.
    pub fn forbidden(&self) -> Result<Findings> {
        let mut findings = self.count()?;
        for ((pod, target), tries) in &self.tries {
            let early = tries.iter().take_while(|one| one.passed).count();
            let later = tries[early..].iter().filter(|one| one.passed).count();
            ensure!(later == 0, "{pod} -> {target} passed {later} times after a refusal: {tries:?}");
            let refused = tries.get(early);
            let refused =
                refused.with_context(|| format!("{pod} -> {target} was never refused: {tries:?}"))?;
            findings.passed_early += early;
            if let Some(hold) = self.held.get(pod).filter(|hold| hold.target == *target) {
                let later = hold.answers.iter().filter(|at| **at > refused.to).count();
                ensure!(
                    later == 0,
                    "{pod} -> {target}: {later} answers came over a connection that should have been cut by {}: {hold:?}",
                    refused.to
                );
            }
        }
        Ok(findings)
    }

    /// The tries that were answered: pod, target, and seconds of the machine's clock before and after.
    pub fn answered(&self) -> impl Iterator<Item = (&str, &str, f64, f64)> {
        self.tries.iter().flat_map(|((pod, target), tries)| {
            let answered = tries.iter().filter(|one| one.passed);
            answered.map(|one| (pod.as_str(), target.as_str(), one.from, one.to))
        })
    }

    /// What was refused although it is permitted; an error if anything was after the first answer. `unknown`: whether the
    /// agent of a pod did not know the pod yet at some time, if that is known: an answer may have come before that, while
    /// no program was there.
    pub fn permitted(&self, unknown: impl Fn(&str, f64) -> bool) -> Result<Findings> {
        let mut findings = self.count()?;
        // By pod: when the last of its targets had answered for the first time, the SYNs sent again by then, and in all.
        let mut pods: BTreeMap<&str, (f64, u64, u64)> = BTreeMap::new();
        for ((pod, target), tries) in &self.tries {
            let judged = tries.iter().skip_while(|one| unknown(pod, one.from));
            let early = tries.len() - judged.skip_while(|one| !one.passed).count();
            let first =
                tries.get(early).with_context(|| format!("{pod} -> {target} never passed: {tries:?}"))?;
            let pairs = || tries[early..].windows(2);
            let starved = pairs().filter(|pair| pair[1].was_starved(&pair[0])).count();
            let later = pairs().filter(|pair| !pair[1].passed).count() - starved;
            ensure!(later == 0, "{pod} -> {target} was refused {later} times after an answer: {tries:?}");
            findings.starved += starved;
            findings.refused_early += tries[..early].iter().filter(|one| !one.passed).count();
            findings.delayed +=
                tries.iter().filter(|one| one.passed && one.to - one.from > SECOND_SYN).count();
            findings.longest_wait = findings.longest_wait.max(first.to - tries[0].from);
            let (at, by_then, in_all) = pods.entry(pod).or_default();
            if first.to >= *at {
                (*at, *by_then) = (first.to, first.resent);
            }
            *in_all = tries.iter().map(|one| one.resent).fold(*in_all, u64::max);
        }
        // A busy machine loses packets too, so this is told and not judged: whether it was a verdict, the counters of the
        // agents say. (The SYNs of a held connection count as well, and cannot be told from those of the tries.)
        let tried = pods.iter().filter(|(pod, _)| !self.held.contains_key(**pod));
        findings.lost_late = tried.map(|(_, (_, by_then, in_all))| in_all - by_then).sum();
        for (pod, hold) in &self.held {
            let last = hold.answers.last().copied().unwrap_or_default();
            ensure!(last >= hold.tried, "{pod} held a connection that was silent at the end: {hold:?}");
        }
        Ok(findings)
    }

    fn count(&self) -> Result<Findings> {
        ensure!(!self.held.is_empty(), "no pod held a connection");
        Ok(Findings {
            sequences: self.tries.len(),
            tries: self.tries.values().map(Vec::len).sum(),
            held: self.held.len(),
            answers: self.held.values().map(|hold| hold.answers.len()).sum(),
            reopened: self.held.values().map(|hold| hold.opened.len().saturating_sub(1)).sum(),
            ..Findings::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The log of one pod per text; lines are parted by `;`. The first pod holds a connection unless the text says so.
    fn tries(pods: &[&str]) -> Tries {
        let mut tries = Tries::default();
        for (i, lines) in pods.iter().enumerate() {
            let log: Vec<String> =
                lines.split(';').map(|line| format!("2026 stdout F {}", line.trim())).collect();
            tries.add(&format!("pod-{i}"), &log.join("\n")).unwrap();
        }
        tries
    }

    /// One that was judged from its second on: what it held was cut at 3.5.
    const CUT: &str =
        "open db 0.1; try db 0.1 0.2 passed 0; try db 0.3 3.3 refused 1; held db 0.4; tried all 8.0";
    /// One that reconnected at 3.2 and went on.
    const ON: &str = "open db 0.1; open db 3.2; try db 0.1 3.1 refused 1; try db 3.1 3.2 passed 1; held db 3.3; \
                      held db 8.9; tried all 8.0; all tries are done";

    #[test]
    fn what_passes_before_the_first_refusal_is_counted_and_after_it_is_wrong() {
        let found = tries(&[CUT, "try db 0.1 3.2 refused 1"]).forbidden().unwrap();
        assert_eq!((found.sequences, found.tries, found.passed_early), (2, 3, 1));
        assert_eq!((found.held, found.answers, found.reopened), (1, 1, 0));
        for wrong in ["try db 0.1 3.1 refused 1; try db 3.2 3.3 passed 1", "try db 0.1 0.2 passed 0"] {
            assert!(tries(&[CUT, wrong]).forbidden().is_err(), "{wrong}");
        }
        let uncut = tries(&[CUT, &CUT.replace("held db 0.4", "held db 3.4")]).forbidden().unwrap_err();
        assert!(uncut.to_string().contains("pod-1 -> db: 1 answers"), "{uncut}");
        assert!(tries(&["try db 0.1 3.2 refused 1"]).forbidden().is_err(), "nobody held a connection");
    }

    #[test]
    fn what_is_refused_before_the_first_answer_is_counted_and_after_it_is_wrong() {
        let found =
            tries(&[ON, "try db 0.1 1.2 passed 1; try db 1.3 1.4 passed 1"]).permitted(|_, _| false).unwrap();
        assert_eq!((found.sequences, found.refused_early, found.delayed), (2, 1, 1));
        assert_eq!((found.held, found.answers, found.reopened), (1, 2, 1));
        assert!((found.longest_wait - 3.1).abs() < 0.01, "{found}");
        for wrong in ["try db 0.1 0.2 passed 0; try db 0.3 3.3 refused 1", "try db 0.1 3.1 refused 1"] {
            assert!(tries(&[ON, wrong]).permitted(|_, _| false).is_err(), "{wrong}");
        }
        let starved = "try db 0.1 0.2 passed 1; try db 0.3 3.4 refused 1; try db 3.5 3.6 passed 1";
        assert_eq!(tries(&[ON, starved]).permitted(|_, _| false).unwrap().starved, 1);
        for wrong in [
            "try db 0.1 0.2 passed 0; try db 0.3 3.4 refused 2",
            "try db 0.1 0.2 passed 0; try db 0.3 0.4 refused 0",
        ] {
            assert!(tries(&[ON, wrong]).permitted(|_, _| false).is_err(), "{wrong}");
        }
        let silent = tries(&[ON, &ON.replace("held db 8.9; ", "")]).permitted(|_, _| false).unwrap_err();
        assert!(silent.to_string().contains("silent at the end"), "{silent}");
    }

    #[test]
    fn an_answer_from_before_the_pod_is_judged_says_nothing() {
        let early = "try db 0.1 0.2 passed 0; try db 0.3 3.3 refused 1; try db 3.4 3.5 passed 1";
        let all = tries(&[ON, early]);
        assert!(all.permitted(|_, _| false).is_err());
        let found = all.permitted(|pod, at| pod == "pod-1" && at < 1.0).unwrap();
        assert_eq!(found.refused_early, 2, "one of each pod");
        let later = "try db 0.1 0.2 passed 0; try db 3.4 3.5 passed 1; try db 3.6 6.6 refused 1";
        assert!(tries(&[ON, later]).permitted(|_, at| at < 1.0).is_err());
    }

    #[test]
    fn a_syn_that_is_lost_once_every_target_has_answered_is_counted() {
        let first = "try db 0.1 0.2 passed 0; try other 0.1 1.2 passed 1; try db 0.3 0.4 passed 0";
        let none =
            tries(&[ON, &format!("{first}; try db 1.3 1.4 passed 1")]).permitted(|_, _| false).unwrap();
        assert_eq!((none.lost_late, none.delayed), (0, 1));
        let lost =
            tries(&[ON, &format!("{first}; try db 1.3 2.4 passed 2")]).permitted(|_, _| false).unwrap();
        assert_eq!((lost.lost_late, lost.delayed), (1, 2));
    }

    #[test]
    fn the_script_is_one_that_a_shell_takes() {
        let script = script(&[("db", "10.0.0.1".to_owned())], 5432, 2, Duration::from_secs(5));
        let checked =
            std::process::Command::new("busybox").args(["sh", "-n", "-c", &script]).status().unwrap();
        assert!(checked.success(), "{script}");
    }
}
