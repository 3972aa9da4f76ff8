//! Changing what the program does: helper 58.

use super::{EINVAL, helper};
use crate::run::Run;

helper! {
    /// 58 `override_return(ctx, value)`: the probed function returns `value` without running. Where no function is about to
    /// run (return probes, system calls, samples): `-EINVAL`. The server attaches such programs to first instructions only.
    fn override_return(run, _ctx, value) {
        if run.override_return(value) { 0 } else { EINVAL }
    }
}
