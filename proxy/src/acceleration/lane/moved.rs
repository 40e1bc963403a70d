//! A lane that moves with its connection to the next epoch of the proxy.
//!
//! Promotion belongs to the socket: the kernel's map, what is unread in it and the mark stay as they
//! are when another process gets the descriptor. What that process must know is where the connection is,
//! which the kernel says for certain once the mark is taken back that a request needs which the agent has
//! not answered.

use std::sync::Arc;

use millrace_runtime::handoff::PodUid;
use millrace_runtime::handoff::accel::{AccelSpliced, Membership};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;

use super::{Carries, Lane, Mark};
use crate::acceleration::Accelerator;
use crate::acceleration::entry::{Entry, Phase, Returned, Side};
use crate::pods::LocalPod;
use crate::socket::canonical;

/// What another process needs to go on with a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneState {
    pod: PodUid,
    carries: Carries,
    exchanges: u32,
    ask_at: u32,
    tries: u32,
    place: Place,
    returned: Option<Returned>,
    mark: Mark,
    had_body: bool,
    proved: bool,
    /// The application sends straight into another pod.
    #[serde(default)]
    direct: bool,
    /// Messages and bytes of it that are counted, if it ever did.
    #[serde(default)]
    spliced: Option<(u64, u64)>,
}

/// Where the connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Place {
    /// Neither end is in the kernel's map.
    Out,
    /// Both are.
    In,
    /// The proxy's is.
    Left,
}

impl LaneState {
    /// The application's pod.
    pub fn pod(&self) -> &PodUid {
        &self.pod
    }
}

impl Lane {
    /// What the next epoch has to know. The connection may stay all the same.
    pub fn state(&self, tcp: &TcpStream) -> LaneState {
        let place = match self.membership(tcp) {
            Membership::Out | Membership::Changing => Place::Out,
            Membership::In => Place::In,
            Membership::Left => Place::Left,
        };
        let entry = self.entry.borrow();
        LaneState {
            pod: self.pod.spec.uid.clone(),
            carries: self.carries.get(),
            exchanges: self.exchanges.get(),
            ask_at: self.ask_at.get(),
            tries: self.tries.get(),
            place,
            returned: entry.as_ref().and_then(|entry| entry.returned()),
            // A proxy that knows of no splices closes the way by its own marks.
            mark: match self.mark.get() {
                Mark::Direct => Mark::Normal,
                mark => mark,
            },
            had_body: self.had_body.get(),
            proved: self.proved.get(),
            direct: self.is_direct(),
            spliced: self.moved.get().map(|moved| (moved.messages, moved.bytes)),
        }
    }

    /// The connection is another process's now: closing the descriptor ends nothing.
    pub fn forget(&self) {
        if let Some(entry) = self.entry.take() {
            self.accelerator.forget(entry.id());
        }
    }

    /// The lane of a connection that another process had.
    pub fn resume(
        accelerator: &Accelerator,
        pod: &Arc<LocalPod>,
        side: Side,
        state: &LaneState,
        tcp: &TcpStream,
    ) -> Option<Box<Self>> {
        let mut lane = accelerator.lane(pod, side);
        if state.place != Place::Out {
            // Whatever the pod's setting is by now: the socket is in the map.
            let lane = lane.get_or_insert_with(|| {
                let setting = millrace_runtime::handoff::Acceleration::of(&pod.spec);
                Box::new(Self::new(accelerator.clone(), pod.clone(), side, setting))
            });
            let (local, remote) = (tcp.local_addr().ok()?, tcp.peer_addr().ok()?);
            let entry = Arc::new(Entry::new(
                accelerator.next_id(),
                pod.clone(),
                side,
                state.carries,
                (canonical(local), canonical(remote)),
            ));
            entry.set_phase(match state.place {
                Place::Left => Phase::Left,
                Place::In | Place::Out => Phase::Promoted,
            });
            if let Some(why) = state.returned {
                entry.give_up(why);
            }
            entry.set_spliced(state.direct);
            accelerator.adopt(&entry);
            lane.entry.replace(Some(entry));
        }
        let lane = lane?;
        lane.carries.set(state.carries);
        lane.exchanges.set(state.exchanges);
        lane.ask_at.set(state.ask_at);
        lane.tries.set(state.tries);
        lane.mark.set(if state.direct {
            Mark::Direct
        } else {
            state.mark
        });
        lane.moved
            .set(state.spliced.map(|(messages, bytes)| AccelSpliced {
                messages,
                bytes,
                ..AccelSpliced::default()
            }));
        lane.had_body.set(state.had_body);
        lane.was_in.set(state.place != Place::Out);
        lane.redirects.set(state.place == Place::In);
        lane.proved.set(state.proved);
        Some(lane)
    }
}
