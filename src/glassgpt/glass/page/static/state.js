"use strict";
// What is selected, and who is told when it changes: the token position, the head of each block, the checkpoint, the theme.

const state = { position: about.ids.length - 1, heads: new Map() };
const listeners = [];

/**
 * Call `update` now, and again after a change of these kinds or of the checkpoint; later if it is inside a block that is
 * closed.
 */
function follow(element, kinds, update) {
  listeners.push({ element, kinds, update, late: false });
  update();
}

/** Tell everyone who follows this kind, and return when all is shown. Parts that have left the page are forgotten. */
function changed(kind) {
  for (let i = listeners.length - 1; i >= 0; i--) if (!listeners[i].element.isConnected) listeners.splice(i, 1);
  const told = listeners.filter((one) => kind === "checkpoint" || one.kinds.includes(kind));
  for (const listener of told) listener.late = isClosed(listener.element);
  return Promise.all(told.filter((listener) => !listener.late).map((listener) => listener.update()));
}

function isClosed(element) {
  const block = element.closest("details.block");
  return block !== null && !block.open && !element.closest("summary");
}

/** Update what was left out while a block was closed. */
function catchUp(block) {
  for (const listener of listeners) {
    if (listener.late && block.contains(listener.element)) {
      listener.late = false;
      listener.update();
    }
  }
}

function selectPosition(position) {
  const next = Math.min(Math.max(position, 0), sizes.T - 1);
  document.documentElement.style.setProperty("--position", next);
  if (next === state.position) return;
  state.position = next;
  changed("position");
}

/** Outline another token for as long as the pointer is on it; nothing is computed. null: the selected one. */
function peek(position) {
  document.documentElement.style.setProperty("--position", position ?? state.position);
}

function headOf(layer) {
  return state.heads.get(layer) ?? 0;
}

function selectHead(layer, head) {
  state.heads.set(layer, head);
  changed(`head ${layer}`);
}

let wantedFrame = frame;
let changingFrame = false;

/** Show another checkpoint. While one is being drawn, only the newest wish is kept. */
async function showFrame(index) {
  wantedFrame = about.frames[index];
  if (changingFrame) return;
  changingFrame = true;
  while (frame !== wantedFrame) {
    frame = wantedFrame;
    await changed("checkpoint");
  }
  changingFrame = false;
}
