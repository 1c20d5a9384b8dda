//! Speed of the operations on one core, beside ceilings measured in the same run: one line a case.
//!
//! `cargo bench -p rally-kernels` measures all cases, `-- linear bf16` those whose name holds every given word.
//! Figures and ceilings are the best of several rounds, and the ceilings are remeasured before each case: on a machine
//! that others use too, a median would show their work.

use std::hint::black_box;
use std::time::{Duration, Instant};

use half::bf16;
use rally_kernels::attention::{AttentionScratch, mfa_attention};
use rally_kernels::ceiling::{ReadCeiling, flops_per_second};
use rally_kernels::dtype::StorageDtype;
use rally_kernels::isa::Isa;
use rally_kernels::kv::KvPool;
use rally_kernels::linear::linear;
use rally_kernels::matrix::Matrix;
use rally_kernels::sampling::{SamplingParams, SamplingScratch, sample};
use rally_kernels::team::Team;
use rally_kernels::{activation, norm, wire};

/// Bytes that no cache holds.
const STREAMED_BYTES: usize = 256 << 20;

fn main() {
    // `cargo bench` passes `--bench`; `cargo test --all-targets` only wants to see that the binary starts.
    if !std::env::args().any(|word| word == "--bench") {
        return;
    }
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let bench = Bench { words, cpu: cpu_model(), memory: ReadCeiling::new(STREAMED_BYTES) };
    println!("measured on: {}, one core, {:?}", bench.cpu, Isa::detect());
    for dtype in ["bf16", "fp8", "f32"] {
        for rows in [1, 2, 4, 8, 16, 32, 128] {
            // Short enough calls that some run undisturbed on a busy machine.
            bench.linear(dtype, rows, if rows < 16 { 2048 } else { 512 }, 7168);
        }
    }
    for rows in [1, 8, 128] {
        bench.linear_on(Isa::Avx2, "bf16", rows, 2048, 2048);
        bench.linear_on(Isa::Portable, "bf16", rows, 2048, 2048);
    }
    for dtype in [StorageDtype::Bf16, StorageDtype::Fp8E4m3, StorageDtype::F32] {
        bench.attention(dtype, 4096);
    }
    bench.attention(StorageDtype::Bf16, 256);
    bench.elementwise();
    bench.sampling();
}

struct Bench {
    words: Vec<String>,
    cpu: String,
    memory: ReadCeiling,
}

impl Bench {
    fn wants(&self, name: &str) -> bool {
        self.words.iter().all(|word| name.contains(word.as_str()))
    }

    /// Prints one line: `amount` (bytes or operations) per second against the ceiling.
    fn report(&self, name: &str, took: Duration, amount: f64, unit: &str, ceiling: f64) {
        let rate = amount / took.as_secs_f64() * 1e-9;
        let (us, share) = (took.as_secs_f64() * 1e6, 100.0 * rate / ceiling);
        println!("{name:<44} {us:>10.1} us {rate:>7.1} {unit:<8} of {ceiling:>6.1} = {share:>5.1} %   {}", self.cpu);
    }

    fn linear(&self, dtype: &str, rows: usize, out: usize, width: usize) {
        self.linear_on(Isa::detect(), dtype, rows, out, width);
    }

    fn linear_on(&self, isa: Isa, dtype: &str, rows: usize, out: usize, width: usize) {
        let name = format!("linear {dtype} T={rows} {out}x{width} {isa:?}");
        if !self.wants(&name) || !isa.is_available() {
            return;
        }
        let team = Team::serial().with_isa(isa);
        // Enough matrices in turn that weights come from memory, as in a model.
        let matrix = |_| match dtype {
            "bf16" => Matrix::from_bf16(out, width, vec![bf16::from_f32(0.01); out * width]),
            "fp8" => Matrix::from_fp8_block(
                out,
                width,
                vec![0x31; out * width],
                vec![0.01; out.div_ceil(128) * width.div_ceil(128)],
            ),
            _ => Matrix::from_f32(out, width, vec![0.01; out * width]),
        };
        let matrices: Vec<Matrix> = (0..12).map(matrix).collect();
        let x: Vec<f32> = (0..rows * width).map(|index| (index % 17) as f32 * 0.1).collect();
        let mut y = vec![0.0; rows * out];
        let mut turn = 0;
        let bytes = matrices[0].bytes() as f64;
        let flops = (2 * rows * out * width) as f64;
        let (before, peak) = (self.read_ceiling(), fma_ceiling());
        let took = best(|| {
            linear(&team, black_box(&x), rows, &matrices[turn % matrices.len()], &mut y);
            turn += 1;
        });
        let read = before.max(self.read_ceiling());
        // The nearer ceiling is the one that counts.
        if bytes / read > flops / peak {
            self.report(&name, took, bytes, "GB/s", read);
        } else {
            self.report(&name, took, flops, "GFLOP/s", peak);
        }
    }

    fn attention(&self, dtype: StorageDtype, context: usize) {
        let name = format!("mfa_attention {dtype:?} 64x256 context={context}");
        if !self.wants(&name) {
            return;
        }
        let mut pool = KvPool::new(context / 64, 64, 256, 256, dtype);
        let row: Vec<f32> = (0..256).map(|index| (index % 13) as f32 * 0.1).collect();
        (0..context).for_each(|token| pool.write((token / 64) as u32, token % 64, &row, &row));
        let pages: Vec<u32> = (0..(context / 64) as u32).collect();
        let q: Vec<f32> = (0..64 * 256).map(|index| (index % 11) as f32 * 0.01).collect();
        let mut out = vec![0.0; q.len()];
        let mut scratch = AttentionScratch::new();
        let team = Team::serial();
        let peak = fma_ceiling();
        let took =
            best(|| mfa_attention(&team, black_box(&q), 64, 256, &pool, &pages, context, &mut out, &mut scratch));
        self.report(&name, took, (4 * 64 * 256 * context) as f64, "GFLOP/s", peak);
    }

    /// Operations that should be far from mattering: bytes touched against the read ceiling.
    fn elementwise(&self) {
        let (rows, width) = (64, 7168);
        let x: Vec<f32> = (0..rows * width).map(|index| (index % 29) as f32 * 0.1 - 1.0).collect();
        let mut out = x.clone();
        let read = self.read_ceiling();
        if self.wants("rms_norm T=64") {
            let took = best(|| norm::rms_norm(black_box(&x), rows, &x[..width], 1e-5, &mut out));
            self.report("rms_norm T=64", took, (x.len() * 8) as f64, "GB/s", read);
        }
        if self.wants("swiglu T=64") {
            let took = best(|| {
                out.copy_from_slice(&x);
                activation::swiglu_in_place(black_box(&mut out), &x);
            });
            self.report("swiglu T=64", took, (x.len() * 12) as f64, "GB/s", read);
        }
        for dtype in [StorageDtype::Bf16, StorageDtype::Fp8E4m3] {
            let mut bytes = vec![0; wire::encoded_bytes(dtype, rows, width)];
            let amount = (x.len() * 4 + bytes.len()) as f64;
            if self.wants(&format!("wire encode {dtype:?} T=64")) {
                let took = best(|| wire::encode(dtype, black_box(&x), rows, width, &mut bytes));
                self.report(&format!("wire encode {dtype:?} T=64"), took, amount, "GB/s", read);
            }
            if self.wants(&format!("wire decode {dtype:?} T=64")) {
                let took = best(|| wire::decode(dtype, black_box(&bytes), rows, width, &mut out));
                self.report(&format!("wire decode {dtype:?} T=64"), took, amount, "GB/s", read);
            }
        }
    }

    /// One token of Step-3's vocabulary: bytes of logits against the read ceiling.
    fn sampling(&self) {
        let logits: Vec<f32> =
            (0..128_815u32).map(|token| (token.wrapping_mul(2_654_435_761) >> 8) as f32 * 1e-6).collect();
        let hot = SamplingParams { temperature: 1.0, ..SamplingParams::default() };
        let cases = [
            ("greedy", SamplingParams::default()),
            ("temperature", hot),
            ("top_k=50 top_p=0.9", SamplingParams { top_k: 50, top_p: 0.9, ..hot }),
            ("top_p=0.9", SamplingParams { top_p: 0.9, ..hot }),
        ];
        let read = self.read_ceiling();
        let mut scratch = SamplingScratch::new();
        for (words, params) in cases {
            let name = format!("sample 128815 {words}");
            if self.wants(&name) {
                let took = best(|| {
                    black_box(sample(black_box(&logits), &params, 7, &mut scratch)).unwrap_or_default();
                });
                self.report(&name, took, (logits.len() * 4) as f64, "GB/s", read);
            }
        }
    }

    /// GB/s.
    fn read_ceiling(&self) -> f64 {
        self.memory.bytes_per_second(Isa::detect(), 5) * 1e-9
    }
}

/// GFLOP/s.
fn fma_ceiling() -> f64 {
    flops_per_second(Isa::detect(), 20) * 1e-9
}

/// Time of one call: the best of at least nine rounds of at least 3 ms, repeated for 0.7 s.
fn best(mut work: impl FnMut()) -> Duration {
    let start = Instant::now();
    work();
    let calls = (Duration::from_millis(3).as_nanos() / start.elapsed().as_nanos().max(1) + 1) as u32;
    let round = |_| {
        let start = Instant::now();
        (0..calls).for_each(|_| work());
        start.elapsed() / calls
    };
    let enough = Instant::now() + Duration::from_millis(700);
    (0..).take_while(|&number| number < 9 || Instant::now() < enough).map(round).min().unwrap_or_default()
}

fn cpu_model() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    model.map_or_else(|| "unknown CPU".to_owned(), |(_, model)| model.to_owned())
}
