//! What programs of several lanes print, readable.

use std::sync::{Mutex, PoisonError};

/// Shows lines as they come, under the title of the program that they are of.
#[derive(Debug, Default)]
pub struct Screen {
    /// The title that was shown last.
    shown: Mutex<String>,
}

impl Screen {
    /// Shows a line; its title too, unless the line before had the same.
    pub fn line(&self, title: &str, line: &str) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if *shown != title {
            println!("==> {title}");
            title.clone_into(&mut shown);
        }
        println!("{line}");
    }
}
