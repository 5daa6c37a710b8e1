//! Attaching the two programs to an interface: TCX links, pinned and replaced in place, or clsact filters with our own
//! priority and handle where the kernel has no TCX.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::programs::links::{FdLink, LinkError, LinkOrder, PinnedLink};
use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::{SchedClassifier, TcAttachType};
use portcullis_common::Direction;

use super::clsact;
use super::error::{DatapathError, describe};
use super::pins::Pins;
use super::sys;

/// Priority of our clsact filters: before everybody's who did not ask for the very first place.
const CLSACT_PRIORITY: u16 = 1;
/// Handle of our clsact filters, so that they can be told from others and replaced in place.
const CLSACT_HANDLE: TcHandle = TcHandle::new(0, 0x0071);

/// How long another process may still hold a link whose pin is gone.
const LET_GO: Duration = Duration::from_secs(2);

/// What is said when the name had gone to another interface.
const MOVED: &str = "the interface was renamed meanwhile";

/// How programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum AttachMode {
    /// TCX where the kernel has it, else clsact.
    Auto,
    /// TCX links (Linux 6.6 and later).
    Tcx,
    /// clsact filters.
    Clsact,
}

/// The program of a direction: its name in the object.
pub const fn program_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "to_pod",
        Direction::Egress => "from_pod",
    }
}

/// The hook on the host side: what the pod sends comes in there.
const fn hook(direction: Direction) -> TcAttachType {
    match direction {
        Direction::Ingress => TcAttachType::Egress,
        Direction::Egress => TcAttachType::Ingress,
    }
}

/// What the hook of an interface looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookState {
    /// Our program is there, and first.
    Attached,
    /// Our program is there, after others.
    NotFirst,
    /// Our program is not there.
    Missing,
}

/// Loads a program into the kernel; the verifier's last lines are in the error.
pub fn load(ebpf: &mut Ebpf, direction: Direction) -> Result<u32, DatapathError> {
    let name = program_name(direction);
    let failed =
        |error: String| DatapathError::Program { what: "load", program: name, place: String::new(), error };
    let program = classifier(ebpf, direction)?;
    program.load().map_err(|error| failed(describe(&error)))?;
    program.info().map(|info| info.id()).map_err(|error| failed(describe(&error)))
}

pub(super) fn classifier(
    ebpf: &mut Ebpf,
    direction: Direction,
) -> Result<&mut SchedClassifier, DatapathError> {
    let name = program_name(direction);
    let failed =
        |error: String| DatapathError::Program { what: "find", program: name, place: String::new(), error };
    let program = ebpf.program_mut(name).ok_or_else(|| failed("the object does not have it".to_owned()))?;
    program.try_into().map_err(|error: aya::programs::ProgramError| failed(error.to_string()))
}

/// Attaches a program to an interface, or replaces the one that an earlier agent attached, atomically. What the other
/// way of attaching had put there is taken off then.
///
/// The kernel is told names, and names change: whether the program is on the interface meant is looked at afterwards,
/// and if it is not, it is taken off again.
///
/// # Errors
/// What the kernel says.
pub fn attach(
    ebpf: &mut Ebpf,
    pins: &Pins,
    ifindex: u32,
    name: &str,
    direction: Direction,
    tcx: bool,
) -> Result<(), DatapathError> {
    let failed = |error: String| DatapathError::Program {
        what: "attach",
        program: program_name(direction),
        place: format!(" to {name} ({ifindex})"),
        error,
    };
    let now = sys::interface_name(ifindex).ok_or_else(|| failed("there is no such interface".to_owned()))?;
    let program = classifier(ebpf, direction)?;
    if tcx {
        attach_tcx(program, pins, ifindex, &now, direction)?.map_err(failed)?;
        remove_filter(ifindex, direction)
            .map_err(|error| failed(format!("the older filter stays: {error}")))?;
    } else {
        attach_filter(program, ifindex, &now, direction).map_err(failed)?;
        Pins::remove(&pins.link(ifindex, direction))?;
    }
    Ok(())
}

/// The inner error is what the kernel says.
fn attach_tcx(
    program: &mut SchedClassifier,
    pins: &Pins,
    ifindex: u32,
    name: &str,
    direction: Direction,
) -> Result<Result<(), String>, DatapathError> {
    let pin = pins.link(ifindex, direction);
    if replace_pinned(program, &pin) && is_there(program, ifindex, direction, true) {
        return Ok(Ok(()));
    }
    // The last reference: a link that is elsewhere is taken off.
    Pins::remove(&pin)?;
    let fresh = (|| {
        let id = program
            .attach_with_options(name, hook(direction), TcAttachOptions::TcxOrder(LinkOrder::first()))
            .map_err(|error| describe(&error))?;
        let link = program.take_link(id).map_err(|error| describe(&error))?;
        if !is_there(program, ifindex, direction, true) {
            // Dropping the link detaches it.
            return Err(MOVED.to_owned());
        }
        let link: FdLink = link.try_into().map_err(|error: LinkError| describe(&error))?;
        link.pin(&pin).map(drop).map_err(|error| describe(&error))
    })();
    Ok(fresh)
}

fn attach_filter(
    program: &mut SchedClassifier,
    ifindex: u32,
    name: &str,
    direction: Direction,
) -> Result<(), String> {
    match tc::qdisc_add_clsact(name) {
        Ok(()) => {}
        // It is there, ours or another's.
        Err(tc::TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
        Err(error) => return Err(describe(&error)),
    }
    let options = NlOptions { priority: CLSACT_PRIORITY, handle: CLSACT_HANDLE, classid: None };
    let attached = program.attach_with_options(name, hook(direction), TcAttachOptions::Netlink(options));
    let id = if let Ok(id) = attached {
        id
    } else {
        // An earlier agent's filter has the handle: replaced in place.
        let old = SchedClassifierLink::attached(name, hook(direction), CLSACT_PRIORITY, CLSACT_HANDLE, None)
            .map_err(|error| error.to_string())?;
        program.attach_to_link(old).map_err(|error| describe(&error))?
    };
    let link = program.take_link(id).map_err(|error| describe(&error))?;
    if !is_there(program, ifindex, direction, false) {
        // Dropping the link detaches it from where it is.
        return Err(MOVED.to_owned());
    }
    // Dropping the link would detach it, and the filter has to outlive this process.
    std::mem::forget(link);
    Ok(())
}

/// Whether the program is on the hook of this very interface.
fn is_there(program: &SchedClassifier, ifindex: u32, direction: Direction, tcx: bool) -> bool {
    program.info().is_ok_and(|info| state(ifindex, direction, info.id(), tcx) != HookState::Missing)
}

/// Swaps the program behind a pinned link; `false` if there is no usable link (none, or its interface is gone).
fn replace_pinned(program: &mut SchedClassifier, pin: &Path) -> bool {
    let Ok(pinned) = PinnedLink::from_pin(pin) else { return false };
    let Ok(link) = SchedClassifierLink::try_from(FdLink::from(pinned)) else { return false };
    let Ok(id) = program.attach_to_link(link) else { return false };
    // Only the file descriptor goes; the pin keeps the link.
    program.take_link(id).ok().and_then(|link| FdLink::try_from(link).ok()).is_some()
}

/// Takes our program off a hook, however it was attached. An interface that is gone has nothing to take off.
///
/// # Errors
/// If the pin or the filter cannot be removed.
pub fn detach(pins: &Pins, ifindex: u32, direction: Direction) -> Result<(), DatapathError> {
    remove_link(&pins.link(ifindex, direction))?;
    remove_filter(ifindex, direction).map(drop).map_err(|error| DatapathError::Program {
        what: "detach",
        program: program_name(direction),
        place: format!(" from interface {ifindex}"),
        error: error.to_string(),
    })
}

/// Removes a link's pin, and with it the link if nobody else holds it; the number of the program that it held.
///
/// The last reference of the link has to be a file descriptor: closing that detaches before it returns, while what is
/// unpinned is detached some milliseconds later (`bpf_link_put` of the kernel), and until then the program runs on, for an
/// endpoint that is gone, and drops.
fn remove_link(pin: &Path) -> Result<Option<u32>, DatapathError> {
    let link = PinnedLink::from_pin(pin).ok().map(FdLink::from);
    let program = link.as_ref().and_then(|link| link.info().ok()).map(|info| info.program_id());
    Pins::remove(pin)?;
    drop(link);
    Ok(program)
}

/// Removes the pin of a link, and sees to it that its program leaves the hook.
///
/// # Errors
/// If the pin cannot be removed, or the program stays: somebody else holds the link.
pub fn unpin(pin: &Path, ifindex: u32, direction: Direction) -> Result<(), DatapathError> {
    let program = remove_link(pin)?;
    let egress = matches!(direction, Direction::Ingress);
    let runs =
        || sys::tcx_programs(ifindex, egress).is_ok_and(|ids| ids.iter().any(|id| Some(*id) == program));
    let start = Instant::now();
    while runs() {
        if start.elapsed() > LET_GO {
            return Err(DatapathError::Program {
                what: "detach",
                program: program_name(direction),
                place: format!(" from interface {ifindex}"),
                error: "another process holds the link".to_owned(),
            });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Takes our filter off a hook, if it is there; whether it was.
///
/// # Errors
/// What the kernel says.
pub fn remove_filter(ifindex: u32, direction: Direction) -> io::Result<bool> {
    if find_filter(ifindex, direction)?.is_none() {
        return Ok(false);
    }
    match clsact::remove(ifindex, direction, CLSACT_PRIORITY, CLSACT_HANDLE.into()) {
        // It has gone meanwhile, and everything on it.
        Err(_) if sys::interface_name(ifindex).is_none() => Ok(false),
        result => result.map(|()| true),
    }
}

/// The program of our filter on the hook.
///
/// # Errors
/// If the kernel cannot be asked.
pub fn find_filter(ifindex: u32, direction: Direction) -> io::Result<Option<u32>> {
    let filters = clsact::filters(ifindex, direction)?;
    Ok(filters.iter().find(|filter| is_ours(filter, direction)).map(|filter| filter.program))
}

/// Others can take the same priority and handle; the name says whose it is.
fn is_ours(filter: &clsact::Filter, direction: Direction) -> bool {
    (filter.priority, filter.handle) == (CLSACT_PRIORITY, CLSACT_HANDLE.into())
        && filter.name == program_name(direction)
}

/// The ids of the programs that run on the hook before ours; `None`: ours is not there. TCX programs run before every
/// clsact filter; of filters of one priority the order of the kernel's list holds.
pub fn before(ifindex: u32, direction: Direction, program: u32, tcx: bool) -> Option<Vec<u32>> {
    let links = sys::tcx_programs(ifindex, matches!(direction, Direction::Ingress));
    if tcx {
        let links = links.ok()?;
        let ours = links.iter().position(|id| *id == program)?;
        return Some(links[..ours].to_vec());
    }
    let filters = clsact::filters(ifindex, direction).ok()?;
    let ours = filters.iter().position(|filter| is_ours(filter, direction) && filter.program == program)?;
    // Kernels without TCX have no such programs.
    let links = links.unwrap_or_default();
    Some(links.into_iter().chain(filters[..ours].iter().map(|filter| filter.program)).collect())
}

/// What is on the hook, by the ids of the programs there.
pub fn state(ifindex: u32, direction: Direction, program: u32, tcx: bool) -> HookState {
    match before(ifindex, direction, program, tcx) {
        Some(before) if before.is_empty() => HookState::Attached,
        Some(_) => HookState::NotFirst,
        None => HookState::Missing,
    }
}

/// How people can find a program: its id, and its name where the kernel tells it (that takes `CAP_SYS_ADMIN`).
pub fn describe_program(id: u32) -> String {
    let info = aya::programs::loaded_programs().filter_map(Result::ok).find(|info| info.id() == id);
    match info.as_ref().and_then(|info| info.name_as_str()).filter(|name| !name.is_empty()) {
        Some(name) => format!("{name} (id {id})"),
        None => format!("id {id}"),
    }
}
