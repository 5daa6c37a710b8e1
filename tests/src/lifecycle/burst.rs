//! Many pods that connect as the first thing they do, and what became of each try.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// What a pod prints last.
const END: &str = "all tries are done";
/// A connection that took longer than this lost its first SYN: the kernel sends the second after a second.
const SECOND_SYN: f64 = 0.9;

/// The shell script of a pod: tries each target several times, all targets at once, from the first moment, and prints a
/// line a try: target, seconds of the machine's clock before and after, `passed` or `refused`.
pub fn script(targets: &[(&str, String)], port: u16, tries: usize) -> String {
    let mut script = format!(
        "try() {{ n=0; while [ $n -lt {tries} ]; do n=$((n+1)); read a _ < /proc/uptime; \
         if nc -w 3 \"$2\" {port} -e /bin/true 2>/dev/null; then r=passed; else r=refused; fi; \
         read b _ < /proc/uptime; echo \"try $1 $a $b $r\"; [ $r = refused ] || sleep 0.1; done; }}; "
    );
    script.extend(targets.iter().map(|(name, address)| format!("try {name} {address} & ")));
    script + &format!("wait; echo {END}; exec sleep infinity")
}

/// One try.
#[derive(Debug, Clone, PartialEq)]
struct Try {
    from: f64,
    to: f64,
    passed: bool,
}

/// The tries of all pods, by pod and target.
#[derive(Debug, Default)]
pub struct Tries(BTreeMap<(String, String), Vec<Try>>);

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
    /// The longest time from a pod's first try to its first connection, where it is permitted.
    pub longest_wait: f64,
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sequences, tries, passed_early, refused_early, delayed, longest_wait } = self;
        write!(
            f,
            "{sequences} sequences of {tries} tries: {passed_early} passed before the first refusal, {refused_early} \
             refused before the first answer, {delayed} needed a second SYN, longest wait {longest_wait:.2} s"
        )
    }
}

impl Tries {
    /// Reads the logs of all pods of a namespace that the kubelet of a node keeps; `None` while a pod is not done.
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
        for line in log.lines().filter_map(|line| line.split_once(" F try ")) {
            let words: Vec<&str> = line.1.split(' ').collect();
            let [target, from, to, result] = words[..] else { anyhow::bail!("{pod} logged {}", line.1) };
            let one = Try { from: from.parse()?, to: to.parse()?, passed: result == "passed" };
            self.0.entry((pod.to_owned(), target.to_owned())).or_default().push(one);
        }
        Ok(())
    }

    /// What passed although it is forbidden; an error if anything did after the first refusal.
    pub fn forbidden(&self) -> Result<Findings> {
        let mut findings = self.count();
        for ((pod, target), tries) in &self.0 {
            let early = tries.iter().take_while(|one| one.passed).count();
            let later = tries[early..].iter().filter(|one| one.passed).count();
            ensure!(later == 0, "{pod} -> {target} passed {later} times after a refusal: {tries:?}");
            ensure!(early < tries.len(), "{pod} -> {target} was never refused: {tries:?}");
            findings.passed_early += early;
        }
        Ok(findings)
    }

    /// What was refused although it is permitted; an error if anything was after the first answer.
    pub fn permitted(&self) -> Result<Findings> {
        let mut findings = self.count();
        for ((pod, target), tries) in &self.0 {
            let early = tries.iter().take_while(|one| !one.passed).count();
            let first =
                tries.get(early).with_context(|| format!("{pod} -> {target} never passed: {tries:?}"))?;
            let later = tries[early..].iter().filter(|one| !one.passed).count();
            ensure!(later == 0, "{pod} -> {target} was refused {later} times after an answer: {tries:?}");
            findings.refused_early += early;
            findings.delayed +=
                tries.iter().filter(|one| one.passed && one.to - one.from > SECOND_SYN).count();
            findings.longest_wait = findings.longest_wait.max(first.to - tries[0].from);
        }
        Ok(findings)
    }

    fn count(&self) -> Findings {
        let tries = self.0.values().map(Vec::len).sum();
        Findings { sequences: self.0.len(), tries, ..Findings::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tries(results: &[&str]) -> Tries {
        let mut tries = Tries::default();
        let line = |(at, result): (usize, &&str)| format!("2026 stdout F try db {at}.00 {at}.50 {result}\n");
        tries.add("a", &results.iter().enumerate().map(line).collect::<String>()).unwrap();
        tries
    }

    #[test]
    fn what_passes_before_the_first_refusal_is_counted_and_after_it_is_wrong() {
        let found = tries(&["passed", "passed", "refused"]).forbidden().unwrap();
        assert_eq!((found.sequences, found.tries, found.passed_early), (1, 3, 2));
        assert!(tries(&["refused", "passed", "refused"]).forbidden().is_err());
        assert!(tries(&["passed"]).forbidden().is_err(), "never refused");
    }

    #[test]
    fn what_is_refused_before_the_first_answer_is_counted_and_after_it_is_wrong() {
        let found = tries(&["refused", "passed", "passed"]).permitted().unwrap();
        assert_eq!((found.refused_early, found.delayed, found.longest_wait), (1, 0, 1.5));
        assert!(tries(&["passed", "refused"]).permitted().is_err());
        assert!(tries(&["refused"]).permitted().is_err(), "never answered");
    }
}
