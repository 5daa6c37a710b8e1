//! What is wrong with the cluster's ConfigMap.

use super::desired::Problem;
use super::ir::Report;
use crate::model::{ClusterConfig, ModeSetting, World};

/// Reports what in it decides nothing, and what holds instead.
pub(super) fn report(world: &World, problems: &mut Vec<Problem>) {
    for config in world.cluster_configs.values() {
        let ClusterConfig { namespace, name, mode, unknown_keys } = config;
        let mut report = Report::new(format_args!("ConfigMap {namespace}/{name}"), problems);
        if *namespace != world.settings.namespace {
            report.add(
                "metadata.namespace",
                format_args!("it is not in the namespace of Portcullis, `{}`", world.settings.namespace),
                "it decides nothing; move it there, or give the agent the right --namespace",
            );
            continue;
        }
        if let ModeSetting::Unreadable { text, before } = mode {
            let follows = match before {
                Some(mode) => format!("what was set before, {}, stays in force", mode.name()),
                None => format!("the agent's flag decides, {}", world.settings.mode.name()),
            };
            report.add(
                "data.mode",
                format_args!("{text:?} is no mode"),
                format_args!("{follows}; write Enforce, Audit or Disabled"),
            );
        }
        for key in unknown_keys {
            report.add(
                format!("data[{key}]"),
                "this key is not known",
                "it decides nothing; correct it or remove it (known: mode)",
            );
        }
    }
}
