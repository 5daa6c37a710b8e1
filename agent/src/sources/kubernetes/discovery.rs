//! Whether the server really does not have a kind.
//!
//! A plain 404 says nothing: while a control plane is upgraded, the proxy before it may say that to every request, and
//! policies that were taken for gone would open what they close. A kind is absent only if the server's own list of
//! resources does not have it either, and the server answers at the same time about an object that every cluster has.

use http::Request;
use kube::{Client, Error};
use serde_json::Value;

use super::kinds::About;

/// What every cluster has, of a kind that we may read.
const ALWAYS_THERE: &str = "/api/v1/namespaces/default";

/// Asks the server; the error says why its 404 is not believed.
pub(super) async fn confirm_absence(client: &Client, about: &About) -> Result<(), String> {
    let path = format!("/apis/{}", about.api_version());
    match get(client, &path).await {
        Err(Error::Api(status)) if status.code == 404 => {}
        Ok(list) if list["kind"] == "APIResourceList" => {
            let resources = list["resources"].as_array().map_or(&[][..], Vec::as_slice);
            if resources.iter().any(|resource| resource["name"] == about.plural) {
                return Err(format!("its list of resources at {path} has the kind"));
            }
        }
        Ok(_) => return Err(format!("its answer to {path} is no list of resources")),
        Err(Error::Api(status)) if status.code == 403 => {
            return Err(format!(
                "its list of resources at {path} may not be read; bind the ClusterRole system:discovery to the agent"
            ));
        }
        Err(error) => return Err(format!("its list of resources at {path} cannot be read: {error}")),
    }
    match get(client, ALWAYS_THERE).await {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("at the same time {ALWAYS_THERE} cannot be read: {error}")),
    }
}

async fn get(client: &Client, path: &str) -> Result<Value, Error> {
    let request = Request::get(path).body(Vec::new()).map_err(Error::HttpError)?;
    client.request(request).await
}
