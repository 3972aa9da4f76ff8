//! The kernel functions of uprobe sessions.

use super::helper;
use crate::run::Run;
use crate::run::session::{Moment, nowhere};

helper! {
    /// `bpf_session_is_return()`: whether the program runs at the return.
    fn session_is_return(run) { Moment::current().is_some_and(|m| m.at_return).into() }
}

helper! {
    /// `bpf_session_cookie()`: eight bytes that stay with the call, zero at its entry.
    fn session_cookie(run) { Moment::current().map_or_else(nowhere, |m| m.word) as u64 }
}
