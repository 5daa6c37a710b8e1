//! Which test programs run side by side.
//!
//! Tests with real sockets mostly wait: for what must not answer, for pods to start. So clusters and everything else run
//! beside each other. Each lane runs one program at a time; what a program makes has its name, so that what is left
//! behind has one author.

use std::ffi::OsStr;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::cargo::Executable;

/// Programs that start real clusters, a lane each row, in this order. The image takes two minutes to build: the lane that
/// begins with a program that needs it builds it, while the next one does what needs none.
const CLUSTERS: [&[&str]; 3] = [&["cluster_life"], &["cluster_tool", "cluster_reach", "examples"], &[]];

/// Other programs that take a minute or more: they begin first, so that no lane has one left when the others are done.
const LONG: [&str; 6] = ["kernels", "conntrack", "agent", "demo", "random", "kubernetes"];

/// Tests of the product as it is installed: they need the container image.
const WITH_IMAGE: [&str; 3] = ["examples", "cluster_reach", "cluster_life"];

/// Whether a program tests what is installed from the image.
pub fn needs_image(test: &Executable) -> bool {
    is_privileged(test) && WITH_IMAGE.contains(&test.target.as_str())
}

/// Integration tests of the tests' package load programs and make namespaces; nothing else does.
pub fn is_privileged(test: &Executable) -> bool {
    test.kind == "test" && test.package.file_name() == Some(OsStr::new("tests"))
}

/// Programs that any lane may run.
#[derive(Debug)]
pub struct Shared {
    tests: Vec<Executable>,
    next: AtomicUsize,
}

impl Shared {
    /// Those that nobody has taken yet, one at a time.
    pub fn left(&self) -> impl Iterator<Item = &Executable> {
        std::iter::from_fn(|| self.tests.get(self.next.fetch_add(1, Ordering::Relaxed)))
    }
}

/// The programs of each lane's own, and those that a lane takes when it has done them.
pub fn of(mut tests: Vec<Executable>) -> (Vec<Vec<Executable>>, Shared) {
    let place = |names: &[&str], test: &Executable| {
        names.iter().position(|name| is_privileged(test) && *name == test.target)
    };
    let own = |names: &&[&str]| {
        let mut lane: Vec<Executable> = tests.extract_if(.., |test| place(names, test).is_some()).collect();
        lane.sort_by_key(|test| place(names, test));
        lane
    };
    let lanes = CLUSTERS.iter().map(own).collect();
    // Unit tests first: they are quick, and what they find explains what fails later.
    tests.sort_by_key(|found| {
        let long = LONG.iter().position(|name| *name == found.target).unwrap_or(LONG.len());
        (is_privileged(found), long, found.package.clone(), found.target.clone())
    });
    (lanes, Shared { tests, next: AtomicUsize::new(0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test(package: &str, kind: &str, target: &str) -> Executable {
        Executable {
            target: target.to_owned(),
            kind: kind.to_owned(),
            package: package.into(),
            test: true,
            path: "/x".into(),
        }
    }

    #[test]
    fn every_program_has_one_lane_and_those_of_clusters_their_own_in_order() {
        let tests = vec![
            test("/r/tests", "test", "cluster_reach"),
            test("/r/tests", "test", "packets"),
            test("/r/tests", "test", "random"),
            test("/r/tests", "test", "examples"),
            test("/r/tests", "test", "cluster_life"),
            test("/r/tests", "test", "cluster_tool"),
            test("/r/agent", "test", "examples"),
            test("/r/xtask", "bin", "xtask"),
        ];
        let (lanes, shared) = of(tests);
        let names =
            |tests: &[&Executable]| -> Vec<String> { tests.iter().map(|test| test.target.clone()).collect() };
        let lanes: Vec<Vec<&Executable>> = lanes.iter().map(|lane| lane.iter().collect()).collect();
        assert_eq!(names(&lanes[0]), ["cluster_life"]);
        assert_eq!(names(&lanes[1]), ["cluster_tool", "cluster_reach", "examples"]);
        assert_eq!(names(&lanes[2]), [""; 0]);
        assert!(needs_image(lanes[0][0]) && !needs_image(lanes[1][0]));
        // Each is given out once.
        assert_eq!(shared.left().next().map(|test| test.target.as_str()), Some("examples"));
        let left: Vec<&Executable> = shared.left().collect();
        assert_eq!(names(&left), ["xtask", "random", "packets"]);
        assert_eq!(shared.left().count(), 0);
    }
}
