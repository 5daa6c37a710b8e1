//! Which test programs run side by side.
//!
//! Tests with real sockets mostly wait: for what must not answer, for pods to start. So clusters and everything else run
//! beside each other. Each lane runs one program at a time; what a program makes has its name, so that what is left
//! behind has one author.

use std::ffi::OsStr;

use crate::cargo::Executable;

/// Programs that start real clusters, a lane each row, in this order. The image takes two minutes to build: the lane that
/// begins with a program that needs it builds it, while the other one does what needs none.
const CLUSTERS: [&[&str]; 2] = [&["cluster_life"], &["cluster_tool", "cluster_reach", "examples"]];

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

/// The programs of each lane.
pub fn of(mut tests: Vec<Executable>) -> Vec<Vec<Executable>> {
    // Unit tests first: they are quick, and what they find explains what fails later.
    tests.sort_by_key(|found| (is_privileged(found), found.package.clone(), found.target.clone()));
    let mut lanes = Vec::new();
    for names in CLUSTERS {
        let place =
            |test: &Executable| names.iter().position(|name| is_privileged(test) && *name == test.target);
        let mut lane: Vec<Executable> = tests.extract_if(.., |test| place(test).is_some()).collect();
        lane.sort_by_key(place);
        lanes.push(lane);
    }
    lanes.push(tests);
    lanes
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
            test("/r/tests", "test", "examples"),
            test("/r/tests", "test", "cluster_life"),
            test("/r/tests", "test", "cluster_tool"),
            test("/r/agent", "test", "examples"),
            test("/r/xtask", "bin", "xtask"),
        ];
        let lanes = of(tests);
        let names: Vec<Vec<&str>> =
            lanes.iter().map(|lane| lane.iter().map(|test| test.target.as_str()).collect()).collect();
        assert_eq!(
            names,
            [
                vec!["cluster_life"],
                vec!["cluster_tool", "cluster_reach", "examples"],
                vec!["examples", "xtask", "packets"]
            ]
        );
        assert!(needs_image(&lanes[0][0]) && !needs_image(&lanes[2][0]));
    }
}
