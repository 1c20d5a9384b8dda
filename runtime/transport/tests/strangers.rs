//! Whoever comes to the door: hosts with the right key and the same work, hosts with other work, strangers in any number.

use rally_transport::doorman::{Doorman, HANDSHAKE, ReachError, reach};
use rally_transport::handshake::{Claims, HandshakeError, Hash, HostRole};
use rally_transport::key::SharedKey;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Nothing here takes longer.
const SOON: Duration = Duration::from_secs(20);

fn key(text: &str) -> SharedKey {
    SharedKey::new(format!("{text}, and long enough").as_bytes()).expect("it is long enough")
}

fn claims(host: &str, to: &str) -> Claims {
    Claims {
        host: host.into(),
        to: to.into(),
        role: HostRole::Worker,
        version: "0.1.0".into(),
        plan: Hash([1; 32]),
        model: Hash([2; 32]),
        epoch: 7,
        incarnation: 1,
    }
}

fn doorman() -> Doorman {
    Doorman::start("127.0.0.1:0", key("right"), claims("f0", "")).expect("a port can be had")
}

fn reaches(doorman: &Doorman, key: &SharedKey, own: &Claims) -> Result<Claims, ReachError> {
    reach(&doorman.address().to_string(), key, own, HANDSHAKE).map(|(_, claims)| claims)
}

#[track_caller]
fn refused(own: &Claims, said: &[&str]) {
    let error = reaches(&doorman(), &key("right"), own).expect_err("it is refused").to_string();
    for part in said {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
}

#[test]
fn two_hosts_with_one_key_come_together() {
    let doorman = doorman();
    let own = Claims { epoch: 42, ..claims("a0", "f0") };
    let other = reaches(&doorman, &key("right"), &own).expect("both do the same work");
    assert_eq!(other, Claims { epoch: 42, ..claims("f0", "a0") });
    let guest = doorman.guests().recv_timeout(SOON).expect("it was let in");
    assert_eq!(guest.claims, own);
    assert_eq!(doorman.refused(), 0);
}

#[test]
fn a_coordinator_that_comes_second_hears_who_was_first() {
    let doorman = doorman();
    let coordinator =
        |host: &str, incarnation: u64| Claims { role: HostRole::Coordinator, incarnation, ..claims(host, "f0") };
    let reaches = |own: &Claims| reaches(&doorman, &key("right"), own);
    doorman.works_for(Some(coordinator("a0", 5)));
    for other in [coordinator("a1", 6), coordinator("a0", 6)] {
        match reaches(&other).expect_err("it is busy") {
            error @ ReachError::Handshake { source: HandshakeError::Busy(_), .. } => {
                assert!(error.to_string().contains("busy with a run of host `a0`"), "{error}");
                assert!(error.may_pass());
            }
            error => panic!("{error}"),
        }
    }
    // The same run may begin anew, and those that follow it may come.
    reaches(&coordinator("a0", 5)).expect("it is the one");
    reaches(&claims("a1", "f0")).expect("it coordinates nothing");
    // Who would not fit anyhow hears that.
    let differs = Claims { version: "0.2.0".into(), ..coordinator("a1", 6) };
    assert!(matches!(reaches(&differs), Err(ReachError::Handshake { source: HandshakeError::Differs { .. }, .. })));
    doorman.works_for(None);
    reaches(&coordinator("a1", 6)).expect("it is free again");
    for _ in 0..3 {
        doorman.guests().recv_timeout(SOON).expect("it was let in");
    }
    assert!(doorman.guests().is_empty());
}

#[test]
fn what_differs_is_told_with_both_values() {
    refused(&Claims { version: "0.2.0".into(), ..claims("a0", "f0") }, &["version", "0.2.0 here", "0.1.0 there"]);
    let plan = Hash([0xab; 32]);
    refused(&Claims { plan, ..claims("a0", "f0") }, &["plan", "abababababababab here", "0101010101010101 there"]);
    let model = Hash([0xcd; 32]);
    refused(&Claims { model, ..claims("a0", "f0") }, &["model", "cdcdcdcdcdcdcdcd here", "0202020202020202 there"]);
    refused(&claims("a0", "f1"), &["`a0` takes `f0` for `f1`", "address"]);
}

#[test]
fn another_key_opens_nothing_and_tells_nothing() {
    let doorman = doorman();
    let error = reaches(&doorman, &key("wrong"), &claims("a0", "f0")).expect_err("the key is wrong");
    assert!(matches!(error, ReachError::Handshake { source: HandshakeError::WrongKey, .. }), "{error}");
    assert!(!error.may_pass());
    // Counted once the refusal is out.
    let began = Instant::now();
    while doorman.refused() == 0 && began.elapsed() < SOON {
        std::thread::yield_now();
    }
    assert_eq!(doorman.refused(), 1);
    assert!(doorman.guests().is_empty());
}

#[test]
fn claims_that_were_changed_on_the_way_are_refused() {
    let doorman = doorman();
    // In the middle: one byte of the claims is turned, whichever.
    for turned in [0usize, 1, 9, 40, 80, 120] {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port can be had");
        let middle = listener.local_addr().expect("it listens");
        let behind = doorman.address();
        let thread = std::thread::spawn(move || {
            let (mut front, _) = listener.accept().expect("someone comes");
            let mut back = TcpStream::connect(behind).expect("it listens");
            let mut hello = [0; 44];
            front.read_exact(&mut hello).expect("a hello");
            back.write_all(&hello).expect("it is taken");
            back.read_exact(&mut hello).expect("a hello");
            front.write_all(&hello).expect("it is taken");
            let mut rest = vec![0; 1024];
            let count = front.read(&mut rest).expect("claims");
            rest[2 + turned] ^= 1;
            back.write_all(&rest[..count]).expect("they are taken");
            let mut verdict = [9];
            let _ = back.read(&mut verdict);
            assert_eq!(verdict, [0], "byte {turned}");
        });
        let error = reach(&middle.to_string(), &key("right"), &claims("a0", "f0"), HANDSHAKE);
        assert!(error.is_err(), "byte {turned}");
        thread.join().expect("the one in the middle saw a refusal");
    }
    assert!(doorman.guests().is_empty());
}

/// Junk, half handshakes, silence: two thousand connections, or `RALLY_CASES` times as many, some held open, and hosts get in all the
/// while.
#[test]
fn thousands_of_strangers_harm_nothing() {
    let times = std::env::var("RALLY_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(1usize);
    let strangers = 2_000 * times;
    let doorman = doorman();
    let address = doorman.address();
    let mut silent = Vec::new();
    for index in 0..strangers {
        let mut stream = TcpStream::connect(address).expect("the door stays open");
        match index % 4 {
            0 => drop(stream.write_all(b"GET / HTTP/1.1\r\nHost: f0\r\n\r\n and some more to be long enough")),
            1 => drop(stream.write_all(&b"rallyv1\n\x01\0\0\0"[..1 + index % 11])),
            2 => drop(stream.write_all(&[b"rallyv1\n\x01\0\0\0".as_slice(), &[7; 32], &[0xff; 40]].concat())),
            _ => {}
        }
        if index % 100 == 3 {
            silent.push(stream);
        }
        if index % 1000 == 500 {
            let began = Instant::now();
            // A host that is dropped in favour of newer strangers tries again.
            while reaches(&doorman, &key("right"), &claims("a0", "f0")).is_err() {
                assert!(began.elapsed() < SOON, "no host gets in any more");
            }
            doorman.guests().recv_timeout(SOON).expect("it was let in");
        }
    }
    reaches(&doorman, &key("right"), &claims("a0", "f0")).expect("the door is as it was");
    let threads = std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
    assert!(threads < 150, "{threads} threads");
    assert!(doorman.refused() > strangers as u64 / 2, "{} refused", doorman.refused());
}
