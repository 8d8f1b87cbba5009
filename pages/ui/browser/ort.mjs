// Starts the worker that owns onnxruntime-web and turns its messages into promises.

export class Ort {
  #worker = new Worker(new URL('./ort_worker.mjs', import.meta.url), { type: 'module' });
  #waiting = new Map();
  #last = 0;

  constructor() {
    this.#worker.onmessage = ({ data }) => {
      const pending = this.#waiting.get(data.id);
      if (!pending) return;
      if ('share' in data) return pending.report?.(data.share);
      this.#waiting.delete(data.id);
      if ('error' in data) pending.reject(new Error(data.error));
      else pending.resolve(data.answer);
    };
    this.#worker.onerror = (event) => {
      event.preventDefault();
      this.#fail(new Error(`The inference worker stopped. Given: ${event.message || 'loading failed'}. Reload the page.`));
    };
  }

  #fail(error) {
    for (const pending of this.#waiting.values()) pending.reject(error);
    this.#waiting.clear();
  }

  /** Run one of the worker's operations; `report` gets the progress, 0 to 1. */
  call(operation, options, report) {
    this.#last += 1;
    const id = this.#last;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject, report });
      this.#worker.postMessage({ id, operation, options });
    });
  }

  /** Stop the worker; pending calls are rejected with `Stopped`. */
  end() {
    this.#worker.terminate();
    this.#fail(new Stopped());
  }
}

/** The rejection of a call when the worker was stopped on purpose: nothing to show. */
export class Stopped extends Error {}

/**
 * Do `work(ort, runtime)` in a fresh worker. With backend `auto`, if WebGPU fails half-way, do it again in WebAssembly:
 * a worker holds one build of the runtime, so the second try needs a second worker.
 */
export async function withRuntime({ runtime, backend, threads }, keep, work) {
  const attempt = async (wanted) => {
    const ort = new Ort();
    keep(ort);
    const about = await ort.call('start', { runtime: new URL(runtime, location.origin).href, wanted, threads });
    return { about, result: () => work(ort, about) };
  };
  const first = await attempt(backend);
  try {
    return await first.result();
  } catch (error) {
    if (backend !== 'auto' || first.about.backend !== 'webgpu' || error instanceof Stopped) throw error;
    const second = await attempt('wasm');
    second.about.why = `WebGPU failed: ${error.message}`;
    return second.result();
  }
}
