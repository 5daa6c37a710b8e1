//! The definitions of our kinds for the API server, and the parts of their schemas that the types do not say.
//!
//! A schema refuses what cannot mean anything. It needs limits on the lengths of lists: the API server counts what the
//! rules may cost at worst, and refuses a definition that may cost too much.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::Value;

use super::{ClusterIdentityPolicy, IdentityPolicy};

/// The definitions of all kinds, as objects of the API.
///
/// # Errors
/// If a definition cannot be written as JSON, which is a defect of the types.
pub fn definitions() -> serde_json::Result<Vec<Value>> {
    [IdentityPolicy::crd(), ClusterIdentityPolicy::crd()].into_iter().map(definition).collect()
}

fn definition(crd: CustomResourceDefinition) -> serde_json::Result<Value> {
    let mut definition = serde_json::to_value(crd)?;
    without_null(&mut definition);
    Ok(definition)
}

/// A field that is there with nothing below it counts as absent, as in the kinds of Kubernetes itself.
fn without_null(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("nullable");
            fields.values_mut().for_each(without_null);
        }
        Value::Array(items) => items.iter_mut().for_each(without_null),
        _ => {}
    }
}

/// The mode, with the other word for one of them, which the type reads too.
pub fn mode(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "enum": ["Enforce", "Audit", "Disabled", "Off"], "default": "Enforce"})
}

/// Names of service accounts.
pub fn names(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 100,
        "items": {
            "type": "string",
            "maxLength": 253,
            // No patterns: a name that cannot exist would match nobody.
            "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
        },
    })
}

/// A label selector, with what the API server checks of selectors in kinds of its own.
pub fn selector(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "properties": {
            "matchLabels": {
                "type": "object",
                "maxProperties": 50,
                "additionalProperties": {"type": "string", "maxLength": 63},
            },
            "matchExpressions": {
                "type": "array",
                "maxItems": 50,
                "items": {
                    "type": "object",
                    "required": ["key", "operator"],
                    "properties": {
                        "key": {"type": "string", "minLength": 1, "maxLength": 317},
                        "operator": {"type": "string", "enum": ["In", "NotIn", "Exists", "DoesNotExist"]},
                        "values": {
                            "type": "array",
                            "maxItems": 100,
                            "items": {"type": "string", "maxLength": 63},
                        },
                    },
                    "x-kubernetes-validations": [{
                        "rule": "(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)",
                        "message": "`In` and `NotIn` need `values`, `Exists` and `DoesNotExist` must have none",
                    }],
                },
            },
        },
    })
}

/// Conditions, one of each type.
pub fn conditions(generator: &mut SchemaGenerator) -> Schema {
    let condition = generator.subschema_for::<k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition>();
    json_schema!({
        "type": "array",
        "maxItems": 8,
        "items": condition,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
    })
}
