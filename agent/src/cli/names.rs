//! The names file as dumps use it: numbers stay numbers where it has no name.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use portcullis_common::Kind;
use portcullis_common::identity::PEER_UNKNOWN;
use portcullis_common::policy::{Decision, wildcard_of};
use portcullis_common::reason::Reason;
use portcullis_common::service::ServiceKey;

use super::output;
use crate::policy::frontend_text;
use crate::state::{EndpointState, State};

/// Names behind numbers.
#[derive(Debug, Default)]
pub struct Names {
    state: State,
}

impl Names {
    /// Reads the names file; if that fails, says so and goes on with numbers.
    pub fn load(run_dir: &Path) -> Self {
        let state = State::read(run_dir).unwrap_or_else(|error| {
            let path = State::path(run_dir);
            let why = match error.kind() {
                io::ErrorKind::NotFound => "it is not there".to_owned(),
                _ => error.to_string(),
            };
            output::note(&format!(
                "no names, only numbers such as #17: cannot read the names file {} ({why}); the agent writes it when it \
                 starts, and --run-dir names its folder",
                path.display()
            ));
            State::default()
        });
        Self { state }
    }

    /// The whole names file.
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// The whole names file, to keep.
    pub fn into_state(self) -> State {
        self.state
    }

    /// A principal.
    pub fn principal(&self, number: u32) -> String {
        self.state.principal(number)
    }

    /// A peer class, or the wildcard of a kind.
    pub fn peer(&self, number: u32) -> String {
        if let Some(kind) = Kind::ALL.into_iter().find(|kind| wildcard_of(*kind) == number) {
            return match kind {
                Kind::Pod => "any other pod".to_owned(),
                Kind::Host => "this node".to_owned(),
                Kind::Node => "any other node".to_owned(),
                Kind::World => "anywhere else outside".to_owned(),
                Kind::Unmanaged => "unmanaged addresses".to_owned(),
                Kind::Service => "addresses of services".to_owned(),
            };
        }
        match self.state.peers.get(&number) {
            Some(name) => name.clone(),
            None if number == PEER_UNKNOWN => "unknown address outside".to_owned(),
            None => format!("#{number}"),
        }
    }

    /// A subject class.
    pub fn subject(&self, number: u32) -> String {
        match self.state.subjects.get(&number) {
            Some(name) => name.clone(),
            None if number == 0 => String::new(),
            None => format!("#{number}"),
        }
    }

    /// What made a decision: a rule, isolation or the default.
    pub fn rule(&self, decision: Decision) -> String {
        match (self.state.rules.get(&decision.rule), decision.rule, decision.reason) {
            (Some(name), ..) => name.clone(),
            (None, 0, Reason::Default) => "(default verdict)".to_owned(),
            (None, 0, _) => "(isolated, and no rule allows it)".to_owned(),
            (None, number, _) => format!("#{number}"),
        }
    }

    /// The service, or services, of a frontend.
    pub fn service(&self, key: &ServiceKey) -> Option<&str> {
        self.state.services.get(&frontend_text(key)).map(String::as_str)
    }

    /// The pod that has an address.
    pub fn pod(&self, address: IpAddr) -> Option<&str> {
        self.state.pods.get(&address).map(String::as_str)
    }

    /// What the agent wrote about an endpoint.
    pub fn endpoint(&self, ifindex: u32) -> Option<&EndpointState> {
        self.state.endpoints.iter().find(|endpoint| endpoint.ifindex == ifindex)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_common::Verdict;

    #[test]
    fn what_has_no_name_is_shown_by_number_and_what_needs_none_in_words() {
        let mut names = Names::default();
        assert_eq!(names.peer(40), "#40");
        assert_eq!(names.peer(wildcard_of(Kind::Pod)), "any other pod");
        assert_eq!(names.peer(PEER_UNKNOWN), "unknown address outside");
        assert_eq!(names.rule(Decision::new(Verdict::Allow, Reason::Default)), "(default verdict)");
        assert_eq!(
            names.rule(Decision::new(Verdict::Deny, Reason::Policy)),
            "(isolated, and no rule allows it)"
        );
        let by_rule = Decision { verdict: Verdict::Deny, reason: Reason::Policy, rule: 3 };
        assert_eq!(names.rule(by_rule), "#3");
        names.state.rules.insert(3, "IdentityPolicy shop/db ingress api".to_owned());
        assert_eq!(names.rule(by_rule), "IdentityPolicy shop/db ingress api");
        assert_eq!((names.subject(0), names.subject(9)), (String::new(), "#9".to_owned()));
    }
}
