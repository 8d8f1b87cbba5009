// Starts the worker that owns onnxruntime-web and turns its messages into promises.

export class Ort {
  #worker = new Worker(new URL('./ort_worker.mjs', import.meta.url), { type: 'module' });
  #waiting = new Map();
  #last = 0;

  constructor() {
    this.#worker.onmessage = ({ data }) => {
      const call = this.#waiting.get(data.id);
      if (!call) return;
      if ('share' in data) return call.report?.(data.share);
      this.#waiting.delete(data.id);
      if ('error' in data) call.reject(new Error(data.error));
      else call.resolve(data.answer);
    };
    this.#worker.onerror = (event) => {
      event.preventDefault();
      this.#fail(new Error(`The inference worker stopped (${event.message || 'it could not be loaded'}). Reload the page.`));
    };
  }

  #fail(error) {
    for (const call of this.#waiting.values()) call.reject(error);
    this.#waiting.clear();
  }

  /** Ask the worker for one of its operations; `report` hears the share that is done, 0 to 1. */
  ask(operation, options, report) {
    this.#last += 1;
    const id = this.#last;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject, report });
      this.#worker.postMessage({ id, operation, options });
    });
  }

  /** Stop the worker; whoever waits hears that it was stopped. */
  end() {
    this.#worker.terminate();
    this.#fail(new Stopped());
  }
}

/** The reason of a promise whose worker was stopped on purpose: nothing to show. */
export class Stopped extends Error {}

/**
 * Do `work(ort, runtime)` in a fresh worker. With backend `auto`, if WebGPU fails half-way, do it again in WebAssembly:
 * a worker holds one build of the runtime, so the second try needs a second worker.
 */
export async function withRuntime({ runtime, backend, threads }, keep, work) {
  const attempt = async (wanted) => {
    const ort = new Ort();
    keep(ort);
    const about = await ort.ask('start', { runtime: new URL(runtime, location.origin).href, wanted, threads });
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
