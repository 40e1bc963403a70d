//! One counter for every outcome of every program, each miss included.
//!
//! The index is the place in a per-CPU array; the name becomes the `outcome` label of the agent's metric,
//! the hook its `hook` label.

macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident => ($hook:literal, $name:literal),)+) => {
        /// Outcome of one run of a program.
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
        #[repr(u32)]
        pub enum Counter {
            $($(#[$doc])* $variant,)+
        }

        impl Counter {
            /// Every counter, in the order of the indexes.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The program that counts it.
            pub const fn hook(self) -> &'static str {
                match self { $(Self::$variant => $hook,)+ }
            }

            /// What happened.
            pub const fn outcome(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

counters! {
    /// Redirected to the outbound listener.
    ConnectRedirected => ("connect", "redirected"),
    /// TCP to port 53 redirected to the DNS listener.
    ConnectDnsRedirected => ("connect", "dns_redirected"),
    /// Namespace without a policy.
    ConnectNotEnrolled => ("connect", "not_enrolled"),
    /// The proxy's own socket.
    ConnectGuardMark => ("connect", "guard_mark"),
    /// Neither TCP nor DNS over UDP.
    ConnectOtherProtocol => ("connect", "other_protocol"),
    /// To loopback.
    ConnectLoopback => ("connect", "loopback"),
    /// To the pod's own address.
    ConnectOwnAddress => ("connect", "own_address"),
    /// Port excluded by the pod.
    ConnectExcludedPort => ("connect", "excluded_port"),
    /// CIDR excluded by the pod.
    ConnectExcludedCidr => ("connect", "excluded_cidr"),
    /// The pod captures only what it includes.
    ConnectNotIncluded => ("connect", "not_included"),
    /// The pod's policy does not capture outbound.
    ConnectOutboundOff => ("connect", "outbound_off"),
    /// Open pod, no listener: went direct.
    ConnectListenerMissing => ("connect", "listener_missing"),
    /// Open pod, proxy gone: went direct.
    ConnectProxyGoneDirect => ("connect", "proxy_gone_direct"),
    /// Closed pod, proxy gone: refused.
    ConnectProxyGoneRefused => ("connect", "proxy_gone_refused"),
    /// No socket storage for an open pod: went direct.
    ConnectStorageFullDirect => ("connect", "storage_full_direct"),
    /// No socket storage for a closed pod: refused.
    ConnectStorageFullRefused => ("connect", "storage_full_refused"),
    /// The pod's address could not be bound; the proxy sees loopback as the source.
    ConnectSourceNotBound => ("connect", "source_not_bound"),
    /// A datagram to port 53 sent to the DNS listener.
    SendmsgDnsRedirected => ("sendmsg", "dns_redirected"),
    /// A datagram left alone.
    SendmsgPassed => ("sendmsg", "passed"),
    /// A datagram of a closed pod refused.
    SendmsgRefused => ("sendmsg", "refused"),
    /// A datagram of an open pod that went direct.
    SendmsgDirect => ("sendmsg", "direct"),
    /// An answer's source address put back.
    RecvmsgRestored => ("recvmsg", "restored"),
    /// An answer left alone.
    RecvmsgPassed => ("recvmsg", "passed"),
    /// The address that the application asked for was shown.
    GetpeernameRestored => ("getpeername", "restored"),
    /// Not a redirected socket.
    GetpeernamePassed => ("getpeername", "passed"),
    /// An original destination handed to the accepting end.
    SockopsPublished => ("sockops", "published"),
    /// No room for an original destination.
    SockopsPublishFailed => ("sockops", "publish_failed"),
    /// The accepting end took its original destination.
    SockopsAdopted => ("sockops", "adopted"),
    /// Accepted on a capture port without an original destination.
    SockopsAdoptMissed => ("sockops", "adopt_missed"),
    /// No socket storage on the accepting end.
    SockopsStorageFailed => ("sockops", "storage_failed"),
    /// A connection of the host or of the proxy's delivery announced to `sk_lookup`.
    SockopsAnnounced => ("sockops", "announced"),
    /// No room to announce one: it is treated as any other.
    SockopsAnnounceFailed => ("sockops", "announce_failed"),
    /// Original destination answered from the socket's storage.
    GetsockoptAnswered => ("getsockopt", "answered"),
    /// Original destination answered from the socket's local address.
    GetsockoptLocalAddress => ("getsockopt", "local_address"),
    /// Asked for the original destination where none is known.
    GetsockoptMissed => ("getsockopt", "missed"),
    /// Buffer of the caller too small.
    GetsockoptShortBuffer => ("getsockopt", "short_buffer"),
    /// Steered to the inbound listener.
    LookupSteered => ("sk_lookup", "steered"),
    /// Local address of no enrolled pod.
    LookupNotEnrolled => ("sk_lookup", "not_enrolled"),
    /// Not TCP.
    LookupOtherProtocol => ("sk_lookup", "other_protocol"),
    /// From inside the pod.
    LookupLocal => ("sk_lookup", "local"),
    /// A port of Millrace's own.
    LookupReservedPort => ("sk_lookup", "reserved_port"),
    /// From the host's namespace.
    LookupHostOriginated => ("sk_lookup", "host_originated"),
    /// The proxy's own delivery.
    LookupDelivery => ("sk_lookup", "delivery"),
    /// Port excluded by the pod.
    LookupExcludedPort => ("sk_lookup", "excluded_port"),
    /// The pod captures only what it includes.
    LookupNotIncluded => ("sk_lookup", "not_included"),
    /// The pod's policy does not capture inbound.
    LookupInboundOff => ("sk_lookup", "inbound_off"),
    /// Open pod without a listener, or with the proxy gone: to the application.
    LookupListenerMissingDirect => ("sk_lookup", "listener_missing_direct"),
    /// Closed pod without a listener, or with the proxy gone: refused.
    LookupListenerMissingRefused => ("sk_lookup", "listener_missing_refused"),
    /// Both ends of a connection put into the map.
    PromoteDone => ("promote", "promoted"),
    /// An end is not there.
    PromoteNotFound => ("promote", "not_found"),
    /// An end is not established.
    PromoteNotEstablished => ("promote", "not_established"),
    /// Not a socket of the proxy's.
    PromoteNotProxys => ("promote", "not_proxys"),
    /// Connected before its pod was captured.
    PromoteNoCookie => ("promote", "no_cookie"),
    /// Not accepted yet, or closed.
    PromoteNotAccepted => ("promote", "not_accepted"),
    /// An end blocks.
    PromoteBlocking => ("promote", "blocking"),
    /// An end has an option that acceleration cannot honour.
    PromoteSocketOption => ("promote", "socket_option"),
    /// An end is Multipath TCP.
    PromoteMptcp => ("promote", "mptcp"),
    /// An end is in a map already.
    PromoteInUse => ("promote", "in_use"),
    /// The kernel does not take an end.
    PromoteUnsupported => ("promote", "unsupported"),
    /// No memory, or the map is full.
    PromoteFull => ("promote", "full"),
    /// The kernel refused in another way.
    PromoteFailed => ("promote", "failed"),
    /// The proxy did not wait for the answer.
    PromoteWithdrawn => ("promote", "withdrawn"),
    /// The application's end of a connection taken out of the map.
    LeaveDone => ("leave", "left"),
    /// Not taken out: redirected bytes are unread.
    LeaveUnread => ("leave", "unread"),
    /// Not taken out for another reason.
    LeaveRefused => ("leave", "refused"),
    /// Not taken out: a message of a spliced application may be on its way.
    LeaveUnsettled => ("leave", "unsettled"),
    /// The applications of two connections send to each other.
    SpliceDone => ("splice", "spliced"),
    /// Something is on its way between them.
    SpliceUnread => ("splice", "unread"),
    /// A pod's setting is not `on`.
    SpliceOff => ("splice", "off"),
    /// An end is gone, has an option that acceleration cannot honour, or is not to be spliced by now.
    SpliceRefused => ("splice", "refused"),
    /// A message put straight into the other pod.
    MessageSpliced => ("sk_msg", "spliced"),
    /// To the proxy again: a pod's setting is not `on` any more.
    UnspliceOff => ("unsplice", "off"),
    /// To the proxy again: it said so.
    UnspliceMarked => ("unsplice", "marked"),
    /// To the proxy again: an option that acceleration cannot honour was set.
    UnspliceOption => ("unsplice", "option"),
    /// To the proxy again: an end is gone.
    UnspliceGone => ("unsplice", "gone"),
    /// To the proxy again: the sender has shut its side down.
    UnspliceShutDown => ("unsplice", "shut_down"),
    /// To the proxy again: something went there before the splice was in force.
    UnspliceBroken => ("unsplice", "broken"),
    /// To the proxy again: too much is unread.
    UnspliceCapped => ("unsplice", "capped"),
    /// To the proxy again: TCP is short of memory.
    UnsplicePressure => ("unsplice", "pressure"),
    /// A message put straight into the other end's queue.
    MessageRedirected => ("sk_msg", "redirected"),
    /// By TCP: the pod's setting is off, or it is not captured.
    MessageOff => ("sk_msg", "off"),
    /// By TCP: an option that acceleration cannot honour was set.
    MessageOption => ("sk_msg", "option"),
    /// By TCP: the proxy marked it so.
    MessageMarked => ("sk_msg", "marked"),
    /// By TCP: the proxy withdrew the connection.
    MessageWithdrawn => ("sk_msg", "withdrawn"),
    /// By TCP: too large for a message of the proxy's.
    MessageTooLarge => ("sk_msg", "too_large"),
    /// By TCP: the other end is gone.
    MessagePeerGone => ("sk_msg", "peer_gone"),
    /// By TCP: the sender has shut its side down.
    MessageShutDown => ("sk_msg", "shut_down"),
    /// By TCP: what went by TCP before is not read yet.
    MessageUnreadTcp => ("sk_msg", "unread_tcp"),
    /// By TCP: the first one since promotion.
    MessageNotArmed => ("sk_msg", "not_armed"),
    /// By TCP: too much is unread.
    MessageCapped => ("sk_msg", "capped"),
    /// By TCP: TCP is short of memory.
    MessagePressure => ("sk_msg", "pressure"),
    /// By TCP: the map does not have the other end any more.
    MessageRedirectFailed => ("sk_msg", "redirect_failed"),
    /// By TCP while the application had redirected bytes to read.
    MessageMixed => ("sk_msg", "mixed"),
    /// An option that acceleration cannot honour was set on a promoted connection.
    SetsockoptReturned => ("setsockopt", "returned_to_tcp"),
    /// A protocol on top of TCP, or zero-copy sends, refused to a promoted connection.
    SetsockoptRefused => ("setsockopt", "refused"),
    /// An event found the ring full.
    EventLost => ("event", "lost"),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_are_dense_and_labels_unique() {
        for (index, counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, index);
            for other in &Counter::ALL[..index] {
                assert_ne!(
                    (counter.hook(), counter.outcome()),
                    (other.hook(), other.outcome())
                );
            }
        }
        assert_eq!(Counter::COUNT, Counter::ALL.len());
    }
}
