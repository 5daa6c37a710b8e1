//! What `status` and `check` found: how bad it is, what it is, what follows and what to do.

use std::fmt::Write as _;

use serde::Serialize;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Worth knowing; nothing is broken by it.
    Warn,
    /// Broken.
    Fail,
}

impl Level {
    /// As it is printed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub subject: String,
    /// How bad it is.
    pub level: Level,
    /// What was found and what follows.
    pub message: String,
    /// What to do about it, if anything.
    pub action: Option<String>,
}

impl Finding {
    /// All is well.
    pub fn ok(subject: impl Into<String>, message: impl Into<String>) -> Self {
        Self { subject: subject.into(), level: Level::Ok, message: message.into(), action: None }
    }

    /// Worth knowing.
    pub fn warn(subject: impl Into<String>, message: impl Into<String>, action: impl Into<String>) -> Self {
        let action = Some(action.into()).filter(|action: &String| !action.is_empty());
        Self { subject: subject.into(), level: Level::Warn, message: message.into(), action }
    }

    /// Broken.
    pub fn fail(subject: impl Into<String>, message: impl Into<String>, action: impl Into<String>) -> Self {
        Self { level: Level::Fail, ..Self::warn(subject, message, action) }
    }
}

/// The findings as lines: level, subject and message, and below it what to do.
pub fn render(findings: &[Finding]) -> String {
    let width = findings.iter().map(|f| f.subject.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for Finding { subject, level, message, action } in findings {
        let _ = writeln!(text, "{:<4}  {subject:<width$}  {message}", level.name());
        if let Some(action) = action {
            let _ = writeln!(text, "{:<4}  {:<width$}  -> {action}", "", "");
        }
    }
    text
}

/// Whether anything is broken.
pub fn broken(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.level == Level::Fail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_do_stands_below_what_is_wrong() {
        let findings = [Finding::ok("kernel", "6.18"), Finding::fail("bpffs", "not mounted", "mount it")];
        let wanted = "\
ok    kernel  6.18
FAIL  bpffs   not mounted
              -> mount it
";
        assert_eq!(render(&findings), wanted);
        assert!(broken(&findings));
        assert!(!broken(&findings[..1]));
    }
}
