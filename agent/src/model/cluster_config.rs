//! The ConfigMap of the agent's own namespace, which says what holds for the whole cluster.
//!
//! A setting that cannot be read changes nothing: what was last read from it stays in force, and the problem is
//! reported.

use k8s_openapi::api::core::v1 as core;
use portcullis_common::abi::Mode;

use super::convert::{ConvertError, name, namespace};

/// Its key of the mode.
const MODE: &str = "mode";

/// A ConfigMap named [`ClusterConfig::NAME`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterConfig {
    /// Namespace; only the agent's own one counts.
    pub namespace: String,
    /// Name: always [`ClusterConfig::NAME`].
    pub name: String,
    /// Key `mode`.
    pub mode: ModeSetting,
    /// Keys that mean nothing.
    pub unknown_keys: Vec<String>,
}

/// What a ConfigMap says about the mode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ModeSetting {
    /// Nothing: the agent's flag decides.
    #[default]
    Unset,
    /// This one.
    Set(Mode),
    /// Something that is no mode: what was in force before stays.
    Unreadable {
        /// As written.
        text: String,
        /// The last one that could be read; without one the agent's flag decides.
        before: Option<Mode>,
    },
}

impl ClusterConfig {
    /// The name of the ConfigMap that is read; no other is.
    pub const NAME: &'static str = "portcullis";

    /// The mode that it sets; `None`: the agent's flag decides.
    pub const fn mode(&self) -> Option<Mode> {
        match self.mode {
            ModeSetting::Unset => None,
            ModeSetting::Set(mode) => Some(mode),
            ModeSetting::Unreadable { before, .. } => before,
        }
    }

    /// Takes from the state before what this one cannot say itself.
    pub(super) fn follow(&mut self, before: Option<Mode>) {
        if let ModeSetting::Unreadable { before: kept, .. } = &mut self.mode {
            *kept = kept.or(before);
        }
    }
}

impl TryFrom<core::ConfigMap> for ClusterConfig {
    type Error = ConvertError;

    fn try_from(object: core::ConfigMap) -> Result<Self, ConvertError> {
        let data = object.data.unwrap_or_default();
        let binary = object.binary_data.unwrap_or_default();
        let mode = match data.get(MODE) {
            None => ModeSetting::Unset,
            // A value that comes from a file ends with the file's last newline.
            Some(text) => Mode::from_name(text.trim()).map_or_else(
                || ModeSetting::Unreadable { text: text.clone(), before: None },
                ModeSetting::Set,
            ),
        };
        Ok(Self {
            namespace: namespace(&object.metadata),
            name: name(&object.metadata)?,
            mode,
            unknown_keys: data.into_keys().filter(|key| key != MODE).chain(binary.into_keys()).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(data: &serde_json::Value) -> ClusterConfig {
        let object =
            json!({"metadata": {"name": "portcullis", "namespace": "portcullis-system"}, "data": data});
        ClusterConfig::try_from(serde_json::from_value::<core::ConfigMap>(object).unwrap()).unwrap()
    }

    #[test]
    fn a_mode_is_read_in_any_case_and_with_the_newline_of_a_file() {
        for (text, mode) in [
            ("Enforce", Mode::Enforce),
            ("audit", Mode::Audit),
            ("OFF\n", Mode::Off),
            ("Disabled", Mode::Off),
        ] {
            assert_eq!(config(&json!({"mode": text})).mode, ModeSetting::Set(mode), "{text:?}");
        }
        assert_eq!(config(&json!({})).mode, ModeSetting::Unset);
        assert_eq!(config(&json!(null)).mode(), None);
    }

    #[test]
    fn what_is_no_mode_and_what_means_nothing_is_kept_for_the_report() {
        let read = config(&json!({"mode": "enfroce", "moed": "Off"}));
        assert_eq!(read.mode, ModeSetting::Unreadable { text: "enfroce".into(), before: None });
        assert_eq!((read.mode(), read.unknown_keys), (None, vec!["moed".to_owned()]));
        assert_eq!(
            config(&json!({"mode": ""})).mode,
            ModeSetting::Unreadable { text: String::new(), before: None }
        );
    }
}
