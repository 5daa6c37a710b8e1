use super::*;

fn step(change: impl FnOnce(&mut serde_json::Value)) -> anyhow::Result<Vec<Step>> {
    let mut step = serde_json::json!({
        "case": 7, "step": 1, "description": "two pods",
        "namespaces": {"x": {"ns": "x"}},
        "pods": [{"namespace": "x", "name": "a", "labels": {}, "ip": "10.0.0.1"},
                 {"namespace": "x", "name": "b", "labels": {}, "ip": ["fd00::2", "10.0.0.2"]}],
        "policies": [],
        "ingress": {"SCTP/9000": ["XX", ".."]}, "egress": {"SCTP/9000": ["..", ".."]},
        "combined": {"SCTP/9000": [".X", ".."]},
    });
    change(&mut step);
    parse(&serde_json::json!([step]).to_string())
}

#[test]
fn the_bundled_file_is_read_whole() {
    let steps = read(&bundled()).unwrap();
    let questions: usize = steps.iter().map(|step| step.questions().count()).sum();
    assert_eq!((steps.len(), questions * 3), (155, 200_052));
}

#[test]
fn cells_are_rows_of_senders_and_columns_of_receivers() {
    let steps = step(|_| ()).unwrap();
    let questions: Vec<Asked> = steps[0].questions().collect();
    let found: Vec<_> = questions.iter().map(|asked| (asked.from, asked.to, asked.wanted)).collect();
    assert_eq!(found, [(0, 1, [false, true, false]), (1, 0, [true, true, true])]);
    assert_eq!(questions[0].port.to_string(), "SCTP/9000");
    let served: Vec<String> = steps[0].served().into_iter().map(Port::container_name).collect();
    assert!(served.contains(&"serve-9000-sctp".to_owned()) && served.contains(&"serve-80-tcp".to_owned()));
    let pair = steps[0].addresses(0, 1).unwrap();
    assert_eq!(pair, ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()), "of one family");
}

#[test]
fn what_does_not_fit_is_refused_with_its_place() {
    type Change = fn(&mut serde_json::Value);
    let cases: [(&str, Change); 11] = [
        ("the table egress lacks SCTP/9000", |s| s["egress"] = serde_json::json!({})),
        ("ingress SCTP/9000 has 1 rows for 2 pods", |s| {
            s["ingress"]["SCTP/9000"] = serde_json::json!(["X."]);
        }),
        ("row 1 of combined SCTP/9000 has 3 cells for 2 pods", |s| {
            s["combined"]["SCTP/9000"][1] = "...".into();
        }),
        ("`?` in row 0, column 1 of egress SCTP/9000", |s| s["egress"]["SCTP/9000"][0] = ".?".into()),
        ("`ICMP/0` is no port", |s| {
            for table in ["ingress", "egress", "combined"] {
                s[table] = serde_json::json!({"ICMP/0": ["..", ".."]});
            }
        }),
        ("there are two pods x/a", |s| s["pods"][1]["name"] = "a".into()),
        ("10.0.0.1 of the pod x/b is another pod's, too", |s| s["pods"][1]["ip"] = "10.0.0.1".into()),
        ("the namespace of the pod y/b is not there", |s| s["pods"][1]["namespace"] = "y".into()),
        ("policies[0]: it has no metadata.namespace", |s| {
            s["policies"] = serde_json::json!([{"metadata": {"name": "p"}, "spec": {}}]);
        }),
        ("missing field `policies`", |s| drop(s.as_object_mut().unwrap().remove("policies"))),
        ("its tables are empty", |s| {
            for table in ["ingress", "egress", "combined"] {
                s[table] = serde_json::json!({});
            }
        }),
    ];
    for (message, change) in cases {
        let error = format!("{:#}", step(change).unwrap_err());
        assert!(error.contains(message), "wanted: {message}\nfound: {error}");
        assert!(error.starts_with("step 1 of the file (case 7 step 1)"), "{error}");
    }
    assert!(format!("{:#}", parse("[]").unwrap_err()).contains("there is no step"));
}
