// Holds a live session with the proxy at argv[2] with the key argv[3]: says each of the further arguments as a turn of
// the user, answers calls, and prints what came of it.
import { createRequire } from 'node:module';

const { GoogleGenAI } = createRequire(`${process.env.TEST_NODE_MODULES}/test.js`)('@google/genai');
const [baseUrl, apiKey, system, ...turns] = process.argv.slice(2);
const ai = new GoogleGenAI({ apiKey, httpOptions: { baseUrl } });
const found = { turns: [], calls: [], errors: [] };
const waiting = [];
const messages = [];

const next = () => messages.length ? messages.shift() : new Promise(resolve => waiting.push(resolve));
const push = message => waiting.length ? waiting.shift()(message) : messages.push(message);
let session;
const closed = event => {
  push({ closed: [event.code, event.reason] });
  if (session) return;
  // A session that is refused at once never comes: all that an application gets is this call.
  console.log(JSON.stringify({ ...found, closed: [event.code, event.reason] }));
};
session = await ai.live.connect({
  model: 'gemini-live-2.5-flash',
  config: { responseModalities: ['TEXT'], systemInstruction: system },
  callbacks: {
    onmessage: push,
    onerror: error => found.errors.push(error.message),
    onclose: closed,
  },
});
turns: for (const turn of turns) {
  try {
    session.sendClientContent({ turns: turn, turnComplete: true });
  } catch (error) {
    found.errors.push(error.message);
  }
  let text = '';
  while (true) {
    const message = await next();
    if (message.closed) {
      found.closed = message.closed;
      break turns;
    }
    for (const part of message.serverContent?.modelTurn?.parts ?? []) text += part.text ?? '';
    for (const call of message.toolCall?.functionCalls ?? []) {
      found.calls.push([call.name, call.args]);
      session.sendToolResponse({ functionResponses: [{ id: call.id, name: call.name, response: { output: '12' } }] });
    }
    if (message.serverContent?.interrupted) text += ' (interrupted)';
    if (message.serverContent?.turnComplete) break;
  }
  found.turns.push(text);
}
session.close();
console.log(JSON.stringify(found));
