// The module worker that owns onnxruntime-web: it loads models, times them and classifies, so the page never blocks.

// The smallest model, b = Identity(a): creating it compiles the runtime, whose time is then not charged to the first model.
const SMALLEST = 'CAg6NwoQCgFhEgFiIghJZGVudGl0eRIBZ1oPCgFhEgoKCAgBEgQKAggBYg8KAWISCgoICAESBAoCCAFCBAoAEA0=';

let ort = null;
const sessions = new Map();

async function chooseBackend(wanted) {
  if (wanted === 'wasm') return { backend: 'wasm', why: 'requested' };
  if (!navigator.gpu) return { backend: 'wasm', why: 'WebGPU not available in this browser' };
  let adapter = null;
  try {
    adapter = await navigator.gpu.requestAdapter();
  } catch (error) {
    return { backend: 'wasm', why: `WebGPU failed: ${error.message}` };
  }
  if (!adapter) return { backend: 'wasm', why: 'no WebGPU adapter on this machine' };
  const { vendor = '', architecture = '', isFallbackAdapter = false } = adapter.info ?? {};
  if (wanted === 'auto' && isFallbackAdapter) return { backend: 'wasm', why: 'WebGPU adapter is software only' };
  return { backend: 'webgpu', why: `adapter ${[vendor, architecture].filter(Boolean).join(' ') || 'unnamed'}` };
}

async function fetchBytes(url) {
  const response = await fetch(url);
  if (!response.ok) {
    throw new Error(`File download failed. Given: ${new URL(url).pathname}, status ${response.status}. Export the run again.`);
  }
  return new Uint8Array(await response.arrayBuffer());
}

/** SHA-256 of what arrived, in hexadecimal; null where the page is not a secure context, which alone may compute it. */
async function digest(bytes) {
  if (!self.crypto?.subtle) return null;
  const hash = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes));
  return [...hash].map((byte) => byte.toString(16).padStart(2, '0')).join('');
}

/** Run one batch of uint8 NHWC pixels; waits for the numbers, because WebGPU returns before it has finished. */
async function run(session, pixels, shape, output) {
  return (await runAll(session, pixels, shape, [output]))[0];
}

/** The same for several outputs at once. */
async function runAll(session, pixels, shape, names) {
  const input = new ort.Tensor('uint8', pixels, shape);
  const outputs = await session.run({ images: input }, names, { logSeverityLevel: 4 });
  return Promise.all(names.map((name) => outputs[name].getData(true)));
}

function create(file, provider) {
  // Failures are thrown and shown in words; the runtime need not write them to the console as well.
  const options = { executionProviders: [provider], graphOptimizationLevel: 'all', logSeverityLevel: 4 };
  return ort.InferenceSession.create(file, options);
}

/** ONNX Runtime's WebGPU takes an antialiased Resize and then fails on it; that node has to run on the CPU, by name. */
async function withoutAntialias(session, file, shape) {
  try {
    await run(session, new Uint8Array(shape.reduce((a, b) => a * b, 1)), [1, ...shape], 'logits');
    return session;
  } catch (error) {
    const [, node] = /running Resize node\. Name:'([^']+)'/.exec(error.message) ?? [];
    if (!node) throw error;
    await session.release();
    return create(file, { name: 'webgpu', forceCpuNodeNames: [node] });
  }
}

/** Let the worker process its termination: with promises alone it does not, and the browser waits seconds to kill it. */
const breathe = () => new Promise((resolve) => setTimeout(resolve));

const quantile = (values, q) => {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))];
};

const operations = {
  /** Load the runtime from the folder `runtime` and return its description. */
  async start({ runtime, wanted, threads }) {
    const began = performance.now();
    const { backend, why } = await chooseBackend(wanted);
    const stem = `${runtime}ort-wasm-simd-threaded${backend === 'webgpu' ? '.asyncify' : ''}`;
    ort = await import(`${runtime}ort.${backend}.min.mjs`);
    ort.env.logLevel = 'error';
    ort.env.wasm.wasmPaths = { mjs: `${stem}.mjs`, wasm: `${stem}.wasm` };
    // More than four threads rarely help at batch 1, and shared memory exists only in an isolated page.
    ort.env.wasm.numThreads = self.crossOriginIsolated ? threads || Math.min(4, navigator.hardwareConcurrency || 1) : 1;
    await create(Uint8Array.from(atob(SMALLEST), (c) => c.charCodeAt(0)), backend);
    return {
      backend,
      why,
      threads: ort.env.wasm.numThreads,
      isolated: self.crossOriginIsolated,
      version: ort.env.versions.web,
      start_ms: performance.now() - began,
      user_agent: navigator.userAgent,
    };
  },

  /** Fetch and prepare one model for images of `shape` (H, W, C). */
  async open({ name, url, backend, shape }) {
    const began = performance.now();
    const file = await fetchBytes(url);
    const fetched = performance.now();
    let session = await create(file, backend);
    if (!session.inputNames.includes('images') || !session.outputNames.includes('logits')) {
      throw new Error(
        `${name} is not a SmallAlign export. Given: inputs ${session.inputNames}, outputs ${session.outputNames}. Export it again.`,
      );
    }
    const channels = session.inputMetadata[session.inputNames.indexOf('images')].shape?.[3];
    if (Number.isInteger(channels) && channels !== shape[2]) {
      throw new Error(`${name} expects ${channels} channels. Given: ${shape[2]}. Choose a model of this dataset.`);
    }
    if (backend === 'webgpu') session = await withoutAntialias(session, file, shape);
    sessions.set(name, session);
    const load = performance.now() - fetched;
    return { bytes: file.length, fetch_ms: fetched - began, load_ms: load, sha256: await digest(file) };
  },

  /** Measure the latency of one image in the steady state. */
  async time({ name, image, shape }) {
    const once = () => run(sessions.get(name), image, [1, ...shape], 'logits');
    const began = performance.now();
    await once();
    const first = performance.now() - began;

    // WebAssembly starts in a quick compiler and is recompiled in background threads: for up to two seconds it runs up to
    // fifteen times too slow. So warm up by time, until two successive windows agree; five runs would measure the compiler.
    const LEAST = 1_000, MOST = 8_000, WINDOW = 200;
    const warmBegan = performance.now();
    let each = Infinity, steady = false, warm = 0;
    while (!(steady && warm >= LEAST) && warm < MOST) {
      const windowBegan = performance.now();
      let runs = 0;
      while (runs < 3 || performance.now() - windowBegan < WINDOW) {
        await once();
        runs += 1;
      }
      const now = (performance.now() - windowBegan) / runs;
      steady = Math.abs(now - each) <= 0.1 * Math.max(now, each);
      each = now;
      await breathe();
      warm = performance.now() - warmBegan;
    }

    const repeats = Math.max(1, Math.ceil(2 / each));
    const samples = [];
    const sampleBegan = performance.now();
    while (samples.length < 10 || (samples.length < 100 && performance.now() - sampleBegan < 2_000)) {
      const t = performance.now();
      for (let i = 0; i < repeats; i += 1) await once();
      samples.push((performance.now() - t) / repeats);
      if (samples.length % 10 === 0) await breathe();
    }
    return {
      first_ms: first, warm_ms: warm, steady, repeats, samples: samples.length,
      p50_ms: quantile(samples, 0.5), p95_ms: quantile(samples, 0.95), min_ms: Math.min(...samples),
    };
  },

  /** Run inference on all images; the logits of image after image. */
  async classify({ name, images, count, shape }, report) {
    const bytes = shape.reduce((a, b) => a * b, 1);
    const batch = Math.max(1, Math.min(64, Math.floor(4e6 / bytes)));
    const began = performance.now();
    let logits = null, reported = began;
    for (let from = 0; from < count; from += batch) {
      const many = Math.min(batch, count - from);
      const pixels = images.subarray(from * bytes, (from + many) * bytes);
      const part = await run(sessions.get(name), pixels, [many, ...shape], 'logits');
      if (part.length % many) throw new Error(`${name} gave ${part.length} logits for ${many} images. Export the model again.`);
      logits ??= new Float32Array((part.length / many) * count);
      logits.set(part, (from * part.length) / many);
      if (performance.now() - reported > 100) {
        report(from / count);
        await breathe();
        reported = performance.now();
      }
    }
    return { batch_ms: performance.now() - began, logits };
  },

  /** Fetch the raw images and check that there are as many as promised; with their digest. */
  async images({ url, count, shape }) {
    const images = await fetchBytes(url);
    const expected = shape.reduce((a, b) => a * b, count);
    if (images.length !== expected) {
      throw new Error(`The images have the wrong size. Given: ${images.length} bytes, expected ${expected}. Reload the page.`);
    }
    return { images, sha256: await digest(images) };
  },

  /** Probabilities and time of one image for one model, and whether it is accepted; true where the model does not say. */
  async predict({ name, image, shape }) {
    const began = performance.now();
    const session = sessions.get(name);
    const names = ['probabilities', 'accepted'].filter((one) => session.outputNames.includes(one));
    const [probabilities, accepted] = await runAll(session, image, [1, ...shape], names);
    return { probabilities, accepted: !accepted || Boolean(accepted[0]), ms: performance.now() - began };
  },
};

self.onmessage = async ({ data: { id, operation, options } }) => {
  try {
    const report = (share) => self.postMessage({ id, share });
    self.postMessage({ id, answer: await operations[operation](options, report) });
  } catch (error) {
    self.postMessage({ id, error: String(error?.message ?? error) });
  }
};
