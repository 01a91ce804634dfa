"use strict";
// The recorded numbers: they lie in the page as <script type="text/plain"> elements and are decoded when first used.

/** What describes the model, the prompt and the recorded tensors; see writing.py. */
const about = JSON.parse(document.getElementById("about").textContent);
const config = about.config;
const sizes = {
  T: about.ids.length,
  C: config.n_embd,
  H: config.n_head,
  KV: config.n_kv_head,
  D: config.head_dim,
  A: config.n_head * config.head_dim,
  P: (config.n_head + 2 * config.n_kv_head) * config.head_dim,
  I: config.intermediate_size,
  V: config.vocab_size,
};

/** What the letters of the axes mean. */
const axisNames = {
  T: "tokens",
  C: "channels of the residual stream",
  H: "query heads",
  KV: "key/value heads",
  D: "channels of a head",
  A: "channels of all heads side by side",
  P: "channels of q, k and v side by side",
  I: "hidden units of the MLP",
  V: "tokens of the vocabulary",
};

/** Decode one element: base64 of gzip -> bytes. */
async function decodeBytes(id) {
  const text = atob(document.getElementById(id).textContent);
  const packed = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) packed[i] = text.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Decode one element to float32 numbers: byte 0 of all numbers, then byte 1, and so on. */
async function decodeFloats(id) {
  const planes = await decodeBytes(id);
  const n = planes.length / 4;
  const bytes = new Uint8Array(planes.length);
  for (let plane = 0; plane < 4; plane++) {
    for (let i = 0; i < n; i++) bytes[4 * i + plane] = planes[plane * n + i];
  }
  return new Float32Array(bytes.buffer);
}

/** The text of every token of the vocabulary, by id; ready before the page is built. */
let vocabulary = [];
async function decodeVocabulary() {
  vocabulary = JSON.parse(new TextDecoder().decode(await decodeBytes("vocabulary")));
}
