//! Running the loaded programs on a packet without sending it (`BPF_PROG_TEST_RUN`), for tests and benchmarks.

use std::time::Duration;

use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use portcullis_common::Direction;

use super::error::describe;
use super::{Datapath, DatapathError, attach};

/// Metadata that a packet is run with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeMetadata {
    /// Interface that it is taken to come in by; `0`: generated here.
    pub ingress_ifindex: u32,
    /// Interface that the program is taken to run on; `0`: the loopback interface of this network namespace.
    pub ifindex: u32,
}

/// What a program did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeResult {
    /// Whether the packet passed.
    pub passed: bool,
    /// Average time of a run, as the kernel measured it (whole nanoseconds).
    pub duration: Duration,
}

/// Bytes of `struct __sk_buff` (include/uapi/linux/bpf.h).
pub const CONTEXT_BYTES: usize = 192;

impl ProbeMetadata {
    /// It in its place of `struct __sk_buff`: `ingress_ifindex` at 36, `ifindex` at 40. The kernel wants the fields that it does
    /// not take to be zero.
    pub fn context(&self) -> [u8; CONTEXT_BYTES] {
        let mut context = [0; CONTEXT_BYTES];
        context[36..40].copy_from_slice(&self.ingress_ifindex.to_ne_bytes());
        context[40..44].copy_from_slice(&self.ifindex.to_ne_bytes());
        context
    }
}

/// What a program that was run once did, and what it left of the packet.
#[derive(Clone, Debug)]
pub struct ProbeRemains {
    /// What it did.
    pub result: ProbeResult,
    /// The packet, also if it was dropped.
    pub packet: Vec<u8>,
    /// Its `struct __sk_buff`, as far as the kernel tells it (`convert_skb_to___skb` in `net/bpf/test_run.c`): `mark`, `priority`,
    /// the interfaces, `cb`, the time stamp and lengths.
    pub context: [u8; CONTEXT_BYTES],
}

/// Runs a program `repeat` times on a packet that starts with its Ethernet header.
///
/// # Errors
/// What the kernel says.
pub fn run(
    program: &SchedClassifier,
    packet: &[u8],
    metadata: ProbeMetadata,
    repeat: u32,
) -> Result<ProbeResult, DatapathError> {
    let context = metadata.context();
    run_with(
        program,
        TestRunOptions { data_in: Some(packet), ctx_in: Some(&context), repeat, ..TestRunOptions::default() },
    )
}

fn run_with(program: &SchedClassifier, options: TestRunOptions<'_>) -> Result<ProbeResult, DatapathError> {
    let result = program.test_run(options).map_err(|error| DatapathError::Program {
        what: "test",
        program: "(probe)",
        place: String::new(),
        error: describe(&error),
    })?;
    // TC_ACT_UNSPEC passes, TC_ACT_SHOT (2) drops.
    Ok(ProbeResult { passed: result.return_value == u32::MAX, duration: result.duration })
}

impl Datapath {
    /// Runs the program of a direction on a packet, with everything that follows from it: flows, counters, events.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn probe(
        &mut self,
        direction: Direction,
        packet: &[u8],
        metadata: ProbeMetadata,
        repeat: u32,
    ) -> Result<ProbeResult, DatapathError> {
        run(attach::classifier(&mut self.ebpf, direction)?, packet, metadata, repeat)
    }

    /// As [`Self::probe`], once, and with what is left of the packet. The context is a `struct __sk_buff`, see
    /// [`ProbeMetadata::context`].
    ///
    /// # Errors
    /// What the kernel says.
    pub fn probe_whole(
        &mut self,
        direction: Direction,
        packet: &[u8],
        context: &[u8; CONTEXT_BYTES],
    ) -> Result<ProbeRemains, DatapathError> {
        let (mut left, mut context_left) = (vec![0; packet.len()], [0; CONTEXT_BYTES]);
        let result = run_with(
            attach::classifier(&mut self.ebpf, direction)?,
            TestRunOptions {
                data_in: Some(packet),
                ctx_in: Some(context),
                data_out: Some(&mut left),
                ctx_out: Some(&mut context_left),
                repeat: 1,
                ..TestRunOptions::default()
            },
        )?;
        Ok(ProbeRemains { result, packet: left, context: context_left })
    }

    /// The program of a direction, for [`run`] by several threads at the same time.
    pub fn program(&self, direction: Direction) -> Option<&SchedClassifier> {
        self.ebpf.program(attach::program_name(direction)).and_then(|program| program.try_into().ok())
    }
}
