//! Portcullis in a real cluster over its life: killed, replaced, cut off, switched and removed, while traffic goes on.

pub mod agents;
pub mod burst;
pub mod denials;
pub mod etcd;
pub mod image;
pub mod leftovers;
pub mod pod;
pub mod uninstall;
pub mod watch;

pub use agents::Agents;
pub use denials::Denials;
pub use pod::LivePod;
pub use watch::{Kind, Line, Watch};
