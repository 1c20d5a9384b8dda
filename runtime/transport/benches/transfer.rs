//! What a transport adds to the engine under it: rows of one micro-batch from an attention host to an FFN host (128 tokens of 7168 values,
//! fp8 with their scales and routing) and back (bf16), over rally's transports and over what they use, in one run, taking turns.
//! Conversions are not in it.
//!
//! `cargo bench -p rally-transport --bench transfer` has TCP; `--features nixl`, with the library named in `RALLY_NIXL`, NIXL too. Two
//! threads of one process are the two hosts. Rows over NIXL are measured twice: with whoever waits polling, as the raw round trip does,
//! and with the lane polled by a thread of its own, as the engine does it, which needs a core for each end. `-- 50`: so many round trips.

#[path = "../tests/support/slots.rs"]
mod slots;

use rally_transport::tcp::Tcp;
use rally_transport::transport::PARTS;
use rally_transport::{Direction, Event, Polled, Registration, SlotKey, SlotMemory, Stamp, Transport};
use slots::Parts;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const TOKENS: usize = 128;
const HIDDEN: usize = 7168;
const TOP_K: usize = 3;
/// Rows with a scale for 128 values, expert ids, weights.
const FORTH: [usize; PARTS] = [TOKENS * (HIDDEN + HIDDEN / 128 * 4), TOKENS * TOP_K * 4, TOKENS * TOP_K * 4];
const BACK: [usize; PARTS] = [TOKENS * HIDDEN * 2, 0, 0];
const ROUNDS: usize = 200;
const WARM_UP: usize = 20;

fn bytes(parts: [usize; PARTS]) -> usize {
    parts.iter().sum()
}

/// One end of a way there and back.
trait End: Send {
    /// Sends and waits for the answer.
    fn ask(&mut self);
    /// Waits and answers.
    fn answer(&mut self);
}

/// Round trips that are over, as both ends see it: who answers goes on polling until its write is there.
type Through = Arc<AtomicU64>;

/// Both.
type Ends = [Box<dyn End>; 2];

fn pair() -> [TcpStream; 2] {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port can be had");
    let near = TcpStream::connect(listener.local_addr().expect("it listens")).expect("it listens");
    let far = listener.accept().expect("someone came").0;
    for stream in [&near, &far] {
        stream.set_nodelay(true).expect("it is a socket");
    }
    [near, far]
}

/// A socket that blocks.
struct Socket {
    stream: TcpStream,
    forth: Vec<u8>,
    back: Vec<u8>,
}

impl Socket {
    fn pair() -> Ends {
        pair().map(|stream| {
            Box::new(Self { stream, forth: vec![1; bytes(FORTH)], back: vec![1; bytes(BACK)] }) as Box<dyn End>
        })
    }
}

impl End for Socket {
    fn ask(&mut self) {
        self.stream.write_all(&self.forth).expect("the other end is there");
        self.stream.read_exact(&mut self.back).expect("the other end is there");
    }

    fn answer(&mut self) {
        self.stream.read_exact(&mut self.forth).expect("the other end is there");
        self.stream.write_all(&self.back).expect("the other end is there");
    }
}

/// A transport of rally's.
struct Rally {
    transport: Arc<dyn Transport>,
    /// The lane on which rows come in.
    lane: usize,
    /// What the thread that polls it hears, if it has one of its own.
    heard: Option<Arc<AtomicU64>>,
    step: u64,
    through: Through,
}

fn stamp(step: u64, forth: bool) -> Stamp {
    Stamp { step, layer: 0, rows: TOKENS as u32, routed: forth }
}

impl Rally {
    /// `make` makes a transport of a host's connections; rows come in on the lane that `lane` chooses of so many.
    fn pair(make: impl Fn(usize, Tcp) -> Arc<dyn Transport>, lane: fn(usize) -> usize, own_threads: bool) -> Ends {
        let mut own = 0;
        let transports = pair().map(|stream| {
            let mut links = Tcp::default();
            links.add(1 - own, stream).expect("it is connected");
            let transport = make(own, links);
            let slot = |leg: u8, lengths: [usize; PARTS]| {
                let direction = if usize::from(leg) == own { Direction::Out } else { Direction::In };
                let key = SlotKey { edge: 0, micro_batch: 0, from: 0, to: 1, leg };
                Registration { key, peer: 1 - own, direction, memory: Parts::new(lengths) as Arc<dyn SlotMemory> }
            };
            transport.register(vec![slot(0, FORTH), slot(1, BACK)]);
            own += 1;
            transport
        });
        let through = Through::default();
        transports.map(|transport| {
            let through = Arc::clone(&through);
            let lane = lane(transport.lanes());
            let heard = own_threads.then(|| Arc::new(AtomicU64::new(0)));
            for other in (0..transport.lanes()).filter(|other| own_threads || *other != lane) {
                let (transport, heard) = (Arc::clone(&transport), heard.clone());
                let hear = move |event| {
                    if let (Event::Arrived { .. }, Some(heard)) = (event, &heard) {
                        heard.fetch_add(1, Ordering::Release);
                    }
                };
                std::thread::spawn(move || while transport.poll(other, &mut |event| hear(event)) == Polled::Again {});
            }
            Box::new(Self { transport, lane, heard, step: 0, through }) as Box<dyn End>
        })
    }

    fn wait(&self) {
        if let Some(heard) = &self.heard {
            while heard.load(Ordering::Acquire) < self.step {
                std::thread::yield_now();
            }
            return;
        }
        let mut arrived = false;
        while !arrived {
            let polled = self.transport.poll(self.lane, &mut |event| match event {
                Event::Arrived { stamp, .. } => arrived = stamp.step == self.step,
                event => panic!("{event:?}"),
            });
            assert_eq!(polled, Polled::Again);
        }
    }
}

impl End for Rally {
    fn ask(&mut self) {
        self.step += 1;
        self.transport.post(0, stamp(self.step, true));
        self.wait();
        self.through.store(self.step, Ordering::Release);
    }

    fn answer(&mut self) {
        self.step += 1;
        self.wait();
        self.transport.post(1, stamp(self.step, false));
        while self.through.load(Ordering::Acquire) < self.step {
            match self.heard.is_none() && self.lane > 0 {
                true => drop(self.transport.poll(self.lane, &mut |event| panic!("{event:?}"))),
                false => std::thread::yield_now(),
            }
        }
    }
}

#[cfg(feature = "nixl")]
mod raw {
    use super::{BACK, End, Ends, FORTH, Through, bytes};
    use nixl_sys::{
        Agent, AgentConfig, MemType, NotificationMap, OptArgs, Params, RegistrationHandle, XferDescList, XferOp,
        XferRequest,
    };
    use rally_ffi::nixl::Region;
    use std::sync::Arc;
    use std::sync::atomic::Ordering;

    /// NIXL as its own examples use it: one request, posted again and again.
    pub struct Raw {
        request: XferRequest,
        agent: Agent,
        step: u64,
        posted: bool,
        through: Through,
        _memory: [Vec<u8>; 2],
        _registered: [RegistrationHandle; 2],
    }

    impl Raw {
        pub fn pair() -> Ends {
            let ends = ["raw a", "raw f"].map(|name| {
                let config = AgentConfig { enable_prog_thread: false, ..AgentConfig::default() };
                let agent = Agent::new_configured(name, &config).expect("there are agents");
                let params = Params::from([("engine_config", "NET_DEVICES=lo,TLS=tcp")]).expect("they are parameters");
                agent.create_backend("UCX", &params).expect("UCX is there");
                let memory = [vec![1u8; bytes(FORTH)], vec![1u8; bytes(BACK)]];
                let places = memory.each_ref().map(|part| (part.as_ptr().expose_provenance(), part.len()));
                let register = |(address, bytes)| agent.register_memory(&Region::new(address, bytes), None);
                let registered = places.map(|place| register(place).expect("it is memory"));
                let metadata = agent.get_local_md().expect("there is some");
                (name, agent, memory, places, registered, metadata)
            });
            let others = [1, 0].map(|other: usize| (ends[other].0, ends[other].3, ends[other].5.clone()));
            let (mut index, through) = (0, Through::default());
            ends.map(|(_, agent, memory, places, registered, _)| {
                let (name, theirs, metadata) = &others[index];
                agent.load_remote_md(metadata).expect("it is an agent's");
                let list = |(address, bytes)| {
                    let mut list = XferDescList::new(MemType::Dram).expect("there is memory");
                    list.add_desc(address, bytes, 0);
                    list
                };
                let (from, to) = (list(places[index]), list(theirs[index]));
                let request = agent.create_xfer_req(XferOp::Write, &from, &to, name, None).expect("it is a request");
                index += 1;
                let through = Arc::clone(&through);
                Box::new(Self {
                    request,
                    agent,
                    step: 0,
                    posted: false,
                    through,
                    _memory: memory,
                    _registered: registered,
                }) as Box<dyn End>
            })
        }

        fn post(&mut self) {
            self.posted = true;
            let mut options = OptArgs::new().expect("there is memory");
            options.set_has_notification(true).expect("it is an option");
            options.set_notification_message(&[1; 40]).expect("it is an option");
            self.agent.post_xfer_req(&self.request, Some(&options)).expect("the other end is there");
        }

        fn heard(&self) -> bool {
            let mut map = NotificationMap::new().expect("there is memory");
            self.agent.get_notifications(&mut map, None).expect("the backend is there");
            if self.posted {
                self.agent.get_xfer_status(&self.request).expect("the other end is there");
            }
            !map.is_empty().expect("it is a map")
        }
    }

    impl End for Raw {
        fn ask(&mut self) {
            self.step += 1;
            self.post();
            while !self.heard() {}
            self.through.store(self.step, Ordering::Release);
        }

        fn answer(&mut self) {
            self.step += 1;
            while !self.heard() {}
            self.post();
            while self.through.load(Ordering::Acquire) < self.step {
                assert!(!self.heard());
            }
            // Whoever posts again must be through with what it posted before.
            while !self.agent.get_xfer_status(&self.request).expect("the other end is there").is_success() {}
        }
    }
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn main() {
    // A test run only asks whether it builds.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let rounds = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(ROUNDS);
    let tcp = |_, links| Arc::new(links) as Arc<dyn Transport>;
    let mut ways: Vec<(&str, usize, Ends)> = Vec::new();
    #[cfg(feature = "nixl")]
    {
        let engine = rally_transport::nixl::Engine::open("127.0.0.1:0").expect("rows can go over NIXL");
        let nixl = |own, links| engine.transport(own, links, [0].into()).expect("there are agents");
        ways.push(("raw NIXL (UCX over TCP)", 0, raw::Raw::pair()));
        ways.push(("rally over NIXL", 0, Rally::pair(nixl, |lanes| lanes - 1, false)));
        ways.push(("rally over NIXL, lanes of their own", 0, Rally::pair(nixl, |lanes| lanes - 1, true)));
    }
    let sockets = ways.len();
    ways.push(("raw socket", sockets, Socket::pair()));
    ways.push(("rally over TCP", sockets, Rally::pair(tcp, |_| 0, false)));
    let (names, ends): (Vec<_>, Vec<_>) = ways.into_iter().map(|(name, base, ends)| ((name, base), ends)).unzip();
    let (mut near, mut far): (Vec<_>, Vec<_>) = ends.into_iter().map(|[near, far]| (near, far)).unzip();
    let answers = std::thread::spawn(move || {
        for _ in 0..WARM_UP + rounds {
            far.iter_mut().for_each(|end| end.answer());
        }
        far
    });
    let mut times = vec![Vec::with_capacity(rounds); near.len()];
    for round in 0..WARM_UP + rounds {
        for (end, times) in near.iter_mut().zip(&mut times) {
            // The other end turns to this way meanwhile.
            std::thread::sleep(Duration::from_micros(200));
            let began = Instant::now();
            end.ask();
            if round >= WARM_UP {
                times.push(began.elapsed());
            }
        }
    }
    drop(answers.join().expect("the other end does not panic"));
    let medians: Vec<Duration> = times.iter_mut().map(|times| median(times)).collect();
    let kb = |parts| bytes(parts) as f64 / 1e3;
    println!(
        "{:.0} kB there and {:.0} kB back, {rounds} round trips each, taking turns, on {} cores:",
        kb(FORTH),
        kb(BACK),
        std::thread::available_parallelism().map_or(1, usize::from)
    );
    for ((name, base), time) in names.iter().zip(&medians) {
        let ratio = time.as_secs_f64() / medians[*base].as_secs_f64();
        println!("{name:<36} p50 {:>8.0} us   {ratio:.2} of {}", time.as_secs_f64() * 1e6, names[*base].0);
    }
}
