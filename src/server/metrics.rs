//! What is counted, and its text for Prometheus: under our names and, where routers read them, under those of vLLM.

use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// Sets it to a number that is counted elsewhere.
    pub fn set(&self, count: u64) {
        self.0.store(count, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that grows and shrinks; of any f64.
#[derive(Debug, Default)]
struct Gauge(AtomicU64);

impl Gauge {
    fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }

    fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }
}

/// The upper bounds of the buckets, in seconds.
const BOUNDS: [f64; 16] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];

/// How often a number of seconds fell into which bucket.
#[derive(Debug, Default)]
pub struct Histogram(Mutex<Observed>);

#[derive(Clone, Debug, Default)]
struct Observed {
    buckets: [u64; BOUNDS.len()],
    count: u64,
    sum: f64,
}

impl Histogram {
    pub fn observe(&self, seconds: f64) {
        let mut observed = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(bucket) = BOUNDS.iter().position(|bound| seconds <= *bound) {
            observed.buckets[bucket] += 1;
        }
        observed.count += 1;
        observed.sum += seconds;
    }

    fn get(&self) -> Observed {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }
}

/// Sequences by what ended them.
#[derive(Debug, Default)]
pub struct Finished {
    pub stop: Counter,
    pub length: Counter,
    pub cancelled: Counter,
    pub failed: Counter,
}

/// Everything that is counted.
#[derive(Debug, Default)]
pub struct Metrics {
    pub prompt_tokens: Counter,
    pub generated_tokens: Counter,
    /// Prompt tokens that were taken over from earlier sequences.
    pub prefix_hits: Counter,
    /// Times that a sequence gave up its keys and values to others.
    pub preemptions: Counter,
    pub finished: Finished,
    /// Rounds of the thread that owns the engine.
    steps: Counter,
    /// Requests that were refused since too many wait.
    pub refused: Counter,
    /// Responses by the hundreds of their status: 2xx, 4xx, 5xx.
    pub responses: [Counter; 6],
    pub queue_seconds: Histogram,
    pub first_token_seconds: Histogram,
    pub next_token_seconds: Histogram,
    pub request_seconds: Histogram,
    running: Gauge,
    waiting: Gauge,
    kv_usage: Gauge,
    /// Seconds of all steps, and of all calls of the device.
    step_seconds: Gauge,
    device_seconds: Gauge,
    /// The mean of how long sequences run, the latest counting most.
    run_seconds: Gauge,
}

impl Metrics {
    /// Sets what is true now: running and waiting sequences, and the used share of the room for keys and values.
    pub fn gauges(&self, running: usize, waiting: usize, kv_usage: f64) {
        self.running.set(running as f64);
        self.waiting.set(waiting as f64);
        self.kv_usage.set(kv_usage);
    }

    /// A step took `seconds`, whatever belongs to it included; all calls of the device so far took `device_seconds`.
    pub fn stepped(&self, seconds: f64, device_seconds: f64) {
        self.step_seconds.set(self.step_seconds.get() + seconds);
        self.device_seconds.set(device_seconds);
        self.steps.add(1);
    }

    /// A sequence has run for so long.
    pub fn ran(&self, seconds: f64) {
        let mean = self.run_seconds.get();
        self.run_seconds.set(if mean == 0.0 { seconds } else { mean + (seconds - mean) / 8.0 });
    }

    /// How long sequences run; 0 before the first.
    pub fn mean_run_seconds(&self) -> f64 {
        self.run_seconds.get()
    }

    /// The text for Prometheus.
    pub fn text(&self, model: &str) -> String {
        let model = model.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
        let mut out = Text { text: String::new(), model };
        for (ours, theirs, help, gauge) in [
            ("running_sequences", "num_requests_running", "Sequences that run.", &self.running),
            ("waiting_sequences", "num_requests_waiting", "Sequences that wait.", &self.waiting),
            (
                "kv_usage_ratio",
                "kv_cache_usage_perc",
                "Used share of the room for keys and values, from 0 to 1.",
                &self.kv_usage,
            ),
        ] {
            for name in out.names(ours, theirs) {
                out.family(&name, help, "gauge");
                out.sample(&name, "", gauge.get());
            }
        }
        let Finished { stop, length, cancelled, failed } = &self.finished;
        for (ours, theirs, help, counter) in [
            (
                "prompt_tokens_total",
                "prompt_tokens_total",
                "Tokens of prompts.",
                &self.prompt_tokens,
            ),
            (
                "generated_tokens_total",
                "generation_tokens_total",
                "Tokens generated.",
                &self.generated_tokens,
            ),
            (
                "prefix_queried_tokens_total",
                "prefix_cache_queries_total",
                "Tokens of prompts that could have been there already.",
                &self.prompt_tokens,
            ),
            (
                "prefix_cached_tokens_total",
                "prefix_cache_hits_total",
                "Tokens of prompts that were there already.",
                &self.prefix_hits,
            ),
            (
                "preemptions_total",
                "num_preemptions_total",
                "Times that a sequence gave up its keys and values to others.",
                &self.preemptions,
            ),
        ] {
            for name in out.names(ours, theirs) {
                out.family(&name, help, "counter");
                out.sample(&name, "", counter.get() as f64);
            }
        }
        for name in out.names("sequences_total", "request_success_total") {
            out.family(&name, "Sequences by what ended them.", "counter");
            for (reason, counter) in [("stop", stop), ("length", length), ("abort", cancelled)] {
                let label = format!(",finished_reason=\"{reason}\"");
                out.sample(&name, &label, counter.get() as f64);
            }
            if name.starts_with("oxgpt") {
                out.sample(&name, ",finished_reason=\"error\"", failed.get() as f64);
            }
        }
        for (name, help, value) in [
            ("oxgpt_steps_total", "Steps of the engine.", self.steps.get() as f64),
            ("oxgpt_step_seconds_total", "Time of all steps.", self.step_seconds.get()),
            (
                "oxgpt_device_seconds_total",
                "Time of steps in which the device was given work or waited for.",
                self.device_seconds.get(),
            ),
        ] {
            out.family(name, help, "counter");
            out.sample(name, "", value);
        }
        out.family("oxgpt_refused_requests_total", "Requests refused with 429.", "counter");
        out.sample("oxgpt_refused_requests_total", "", self.refused.get() as f64);
        out.family("oxgpt_responses_total", "Responses by status.", "counter");
        for (hundreds, counter) in self.responses.iter().enumerate().skip(1) {
            let label = format!(",status=\"{hundreds}xx\"");
            out.sample("oxgpt_responses_total", &label, counter.get() as f64);
        }
        for (ours, theirs, help, histogram) in [
            (
                "queue_seconds",
                "request_queue_time_seconds",
                "Time that sequences wait.",
                &self.queue_seconds,
            ),
            (
                "first_token_seconds",
                "time_to_first_token_seconds",
                "Time to the first token.",
                &self.first_token_seconds,
            ),
            (
                "next_token_seconds",
                "inter_token_latency_seconds",
                "Time between two tokens.",
                &self.next_token_seconds,
            ),
            (
                "request_seconds",
                "e2e_request_latency_seconds",
                "Time from submission to end.",
                &self.request_seconds,
            ),
        ] {
            let observed = histogram.get();
            for name in out.names(ours, theirs) {
                out.family(&name, help, "histogram");
                out.histogram(&name, &observed);
            }
        }
        out.text
    }
}

/// Text in Prometheus' format, every sample with the model's name.
struct Text {
    text: String,
    model: String,
}

impl Text {
    fn names(&self, ours: &str, theirs: &str) -> [String; 2] {
        [format!("oxgpt_{ours}"), format!("vllm:{theirs}")]
    }

    // Writing to a string does not fail.
    fn family(&mut self, name: &str, help: &str, kind: &str) {
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &str, value: f64) {
        let _ = writeln!(self.text, "{name}{{model_name=\"{}\"{labels}}} {value}", self.model);
    }

    fn histogram(&mut self, name: &str, observed: &Observed) {
        let mut cumulated = 0;
        for (bound, count) in BOUNDS.iter().zip(&observed.buckets) {
            cumulated += count;
            self.sample(&format!("{name}_bucket"), &format!(",le=\"{bound}\""), cumulated as f64);
        }
        self.sample(&format!("{name}_bucket"), ",le=\"+Inf\"", observed.count as f64);
        self.sample(&format!("{name}_sum"), "", observed.sum);
        self.sample(&format!("{name}_count"), "", observed.count as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_both_names_and_cumulated_buckets() {
        let metrics = Metrics::default();
        metrics.generated_tokens.add(3);
        metrics.first_token_seconds.observe(0.002);
        metrics.first_token_seconds.observe(0.3);
        metrics.first_token_seconds.observe(1e9);
        metrics.gauges(2, 1, 0.5);
        metrics.stepped(0.5, 0.25);
        metrics.stepped(0.25, 0.625);
        let text = metrics.text("a\"b");
        for line in [
            r#"oxgpt_generated_tokens_total{model_name="a\"b"} 3"#,
            r#"vllm:generation_tokens_total{model_name="a\"b"} 3"#,
            r#"vllm:num_requests_running{model_name="a\"b"} 2"#,
            r#"vllm:kv_cache_usage_perc{model_name="a\"b"} 0.5"#,
            r#"vllm:time_to_first_token_seconds_bucket{model_name="a\"b",le="0.25"} 1"#,
            r#"vllm:time_to_first_token_seconds_bucket{model_name="a\"b",le="300"} 2"#,
            r#"vllm:time_to_first_token_seconds_bucket{model_name="a\"b",le="+Inf"} 3"#,
            r#"oxgpt_steps_total{model_name="a\"b"} 2"#,
            r#"oxgpt_step_seconds_total{model_name="a\"b"} 0.75"#,
            r#"oxgpt_device_seconds_total{model_name="a\"b"} 0.625"#,
            "# TYPE vllm:time_to_first_token_seconds histogram",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
    }

    #[test]
    fn the_mean_follows_what_sequences_take() {
        let metrics = Metrics::default();
        metrics.ran(4.0);
        assert_eq!(metrics.mean_run_seconds(), 4.0);
        metrics.ran(12.0);
        assert_eq!(metrics.mean_run_seconds(), 5.0);
    }
}
