// Plays a world model in the page. The network is ONNX and runs in WebAssembly on one thread; sampler and noise are here.
// Files come from the folder named by data-assets, written by rlpapers.diamond.browser: model.onnx, judge.onnx, dream.json, onnxruntime-web.

const TWO32 = 4294967296

// A number in [0, 1) for each 32-bit state (mulberry32): a counter and a hash, so that any frame's noise can be drawn again.
function uniform(state) {
  let t = Math.imul(state ^ (state >>> 15), state | 1)
  t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
  return ((t ^ (t >>> 14)) >>> 0) / TWO32
}

// Standard normals of one frame, by Box and Muller; the same numbers as browser.frame_noise in Python.
function frameNoise(seed, frame, count) {
  const start = Math.imul(seed + 1, 0x9E3779B1) + Math.imul(frame, 0x85EBCA6B)
  const draw = k => uniform((start + Math.imul(k + 1, 0x6D2B79F5)) >>> 0)
  const out = new Float32Array(count)
  for (let k = 0; k < count; k += 2) {
    const radius = Math.sqrt(-2 * Math.log(1 - draw(k))), angle = 2 * Math.PI * draw(k + 1)
    out[k] = radius * Math.cos(angle)
    if (k + 1 < count) out[k + 1] = radius * Math.sin(angle)
  }
  return out
}

const decode = text => Uint8Array.from(atob(text), c => c.charCodeAt(0))
const toFloats = bytes => Float32Array.from(bytes, b => b / 255 * 2 - 1)
const toBytes = floats => Uint8Array.from(floats, v => Math.round((Math.min(1, Math.max(-1, v)) + 1) / 2 * 255))

class Dream {
  constructor(ort, network, judge, about) {                   // judge: network of rewards and ends, or null
    Object.assign(this, { ort, network, judge, about, steps: about.steps, seed: 0, start: 0, points: 0 })
    this.size = about.shape.reduce((a, b) => a * b)
    this.reset()
  }

  reset() {
    const { frames, act } = this.about.starts[this.start]
    this.past = toFloats(decode(frames))                      // (L, C, H, W), oldest first
    this.act = [...act, this.about.idle]                      // its last slot is the action taken now
    this.count = 0
    this.over = false
    this.memory = null                                        // of the judge
  }

  async denoise(x, sigma) {
    const { Tensor } = this.ort, { shape, context } = this.about
    const out = await this.network.run({
      x: new Tensor('float32', x, [1, ...shape]), sigma: new Tensor('float32', [sigma], [1]),
      past: new Tensor('float32', this.past, [1, context, ...shape]),
      act: new Tensor('int64', BigInt64Array.from(this.act, BigInt), [1, context]),
    })
    return out.clean.data
  }

  // Reward and end of one transition, the likeliest of each; the judge remembers those before.
  async verdict(before, action, after) {
    const { Tensor } = this.ort, { shape, units } = this.about
    this.memory ??= { h: new Float32Array(units), c: new Float32Array(units) }
    const frame = x => new Tensor('float32', x, [1, 1, ...shape]), state = x => new Tensor('float32', x, [1, 1, units])
    const out = await this.judge.run({
      obs: frame(before), act: new Tensor('int64', BigInt64Array.of(BigInt(action)), [1, 1]), next: frame(after),
      h: state(this.memory.h), c: state(this.memory.c),
    })
    this.memory = { h: out.h_next.data, c: out.c_next.data }
    const reward = out.reward.data, end = out.end.data
    return { reward: reward.indexOf(Math.max(...reward)) - 1, over: end[1] > end[0] }
  }

  // The judge's memory of the first frames.
  async remember() {
    const at = k => this.past.slice(k * this.size, (k + 1) * this.size)
    for (let k = 0; k < this.about.context - 1; k++) await this.verdict(at(k), this.act[k], at(k + 1))
  }

  // The next frame after an action: Euler steps from noise; the step to level 0 is the denoised frame itself.
  async step(action) {
    if (this.judge && !this.memory) await this.remember()
    const before = this.past.slice(this.past.length - this.size)
    this.act[this.about.context - 1] = action
    const sigmas = this.about.sigmas[this.steps]
    let x = frameNoise(this.seed, this.count, this.size).map(v => v * this.about.init_std)
    for (let i = 0; i < this.steps; i++) {
      const clean = await this.denoise(x, sigmas[i]), move = (sigmas[i + 1] - sigmas[i]) / sigmas[i]
      x = i === this.steps - 1 ? clean : x.map((v, k) => v + (v - clean[k]) * move)
    }
    this.past.copyWithin(0, this.size)
    this.past.set(x, this.past.length - this.size)
    this.act = [...this.act.slice(1), this.about.idle]
    this.count += 1
    if (!this.judge) return
    const { reward, over } = await this.verdict(before, action, x)
    this.points += reward
    this.over = over
  }

  frame() { return toBytes(this.past.subarray(this.past.length - this.size)) }

  draw(canvas) {
    const [, height, width] = this.about.shape, pixels = this.frame(), plane = height * width
    const image = new ImageData(width, height)
    for (let i = 0; i < plane; i++) image.data.set([pixels[i], pixels[plane + i], pixels[2 * plane + i], 255], 4 * i)
    Object.assign(canvas, { width, height })
    canvas.getContext('2d').putImageData(image, 0, 0)
  }

  // All frames after a list of actions, for tests.
  async replay(actions, { seed = 0, start = 0, steps = this.about.steps } = {}) {
    Object.assign(this, { seed, start, steps })
    this.reset()
    const frames = []
    for (const action of actions) { await this.step(action); frames.push([...this.frame()]) }
    return frames
  }
}

async function load(assets) {
  const about = await (await fetch(new URL('dream.json', assets))).json()
  const ort = await import(new URL('ort.wasm.min.mjs', assets))
  ort.env.wasm.numThreads = 1                                 // no shared memory: works without special headers
  ort.env.wasm.wasmPaths = assets.href
  const open = name => ort.InferenceSession.create(new URL(name, assets).href, { executionProviders: ['wasm'] })
  return new Dream(ort, await open('model.onnx'), about.units ? await open('judge.onnx') : null, about)
}

// ---- the page

function setUp(root) {
  const assets = new URL(root.dataset.assets, document.baseURI), part = name => root.querySelector(`[data-part=${name}]`)
  const held = new Set(), times = []
  let dream = null, running = false, waiting = null          // a reset waits for the frame that is being made

  const say = text => { part('status').textContent = text }
  const action = () => {
    const chosen = dream.about.actions.findIndex(a => a.keys.some(k => held.has(k)))
    return chosen < 0 ? dream.about.idle : chosen
  }
  const report = spent => {
    times.push(performance.now())
    if (times.length > 30) times.shift()
    const rate = times.length > 1 ? 1000 * (times.length - 1) / (times.at(-1) - times[0]) : 0
    const points = dream.judge ? ` · points ${dream.points}` : ''
    say(`frame ${dream.count}${points} · ${rate.toFixed(1)} frames/s · ${spent.toFixed(1)} ms for a frame, ${dream.steps} × network · noise seed ${dream.seed}`)
  }

  async function play() {
    running = true
    part('run').textContent = 'Pause'
    times.length = 0
    while (running) {
      if (dream.over) reset(dream.start + 1)
      const began = performance.now()
      await dream.step(action())
      dream.draw(part('screen'))
      const spent = performance.now() - began
      if (waiting) { waiting(); waiting = null }
      report(spent)
      await new Promise(done => setTimeout(done, Math.max(0, 1000 / part('speed').value - spent)))
    }
    part('run').textContent = 'Go on'
  }

  function reset(start) {
    Object.assign(dream, { seed: Number(part('seed').value) >>> 0, steps: Number(part('steps').value), start: start % dream.about.starts.length })
    dream.reset()
    dream.draw(part('screen'))
  }

  part('run').addEventListener('click', async () => {
    if (running) { running = false; return }
    try {
      if (!dream) {
        part('run').disabled = true
        say('Loading the network and its runtime …')
        dream = window.dream = await load(assets)
        part('about').textContent = dream.about.about
        part('steps').replaceChildren(...Object.keys(dream.about.sigmas).map(n => new Option(n, n, false, Number(n) === dream.about.steps)))
        reset(0)
        part('run').disabled = false
      }
      await play()
    } catch (error) { running = false; part('run').disabled = false; say(`This did not work: ${error.message}`) }
  })
  const soon = next => { if (dream) { const act = () => { dream.points = 0; reset(dream.start + next) }; running ? waiting = act : act() } }
  part('reset').addEventListener('click', () => soon(1))
  for (const name of ['seed', 'steps']) part(name).addEventListener('change', () => soon(0))

  const steers = key => dream?.about.actions.some(a => a.keys.includes(key))
  window.addEventListener('keydown', e => {
    if (!running || e.target.matches('input, select, textarea') || !steers(e.key)) return
    held.add(e.key)
    e.preventDefault()                                        // arrow keys would scroll the page
  })
  window.addEventListener('keyup', e => held.delete(e.key))
  window.addEventListener('blur', () => held.clear())
  for (const button of root.querySelectorAll('[data-key]')) {  // for touch screens
    button.addEventListener('pointerdown', () => held.add(button.dataset.key))
    for (const end of ['pointerup', 'pointerleave', 'pointercancel']) button.addEventListener(end, () => held.delete(button.dataset.key))
  }
  say('Press Start.')
}

for (const root of document.querySelectorAll('.dream[data-assets]')) setUp(root)
