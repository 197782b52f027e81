// The AI SDK with its Google provider. The application keeps the history of a chat.
import { KEY, MODEL, SCHEMAS, TOOLS, load, serve } from './driver.mjs';

const { createGoogleGenerativeAI } = load('@ai-sdk/google');
const { generateText, stepCountIs, streamObject, streamText, tool: aTool } = load('ai');
const { z } = load('zod');
const model = baseUrl => createGoogleGenerativeAI({ apiKey: KEY, baseURL: `${baseUrl}/v1beta` })(MODEL);
const tools = Object.fromEntries(Object.entries(SCHEMAS).map(([name, [description, argument]]) => [
  name,
  aTool({ description, inputSchema: z.object({ [argument]: z.string() }), execute: args => TOOLS[name](args) }),
]));
const withTools = { tools, stopWhen: stepCountIs(5) };

const unary = (baseUrl, more) => async (prompt, say) => {
  say((await generateText({ model: model(baseUrl), prompt, ...more })).text);
};

// A stream hands over its errors as parts, so that an application has to look for them.
const read = async (parts, say) => {
  for await (const part of parts) {
    if (part.type === 'error') throw part.error;
    say(part.type === 'text-delta' ? part.text ?? part.textDelta : '');
  }
};

const stream = (baseUrl, more) => (prompt, say) =>
  read(streamText({ model: model(baseUrl), prompt, onError() {}, ...more }).fullStream, say);

const structured = baseUrl => (prompt, say) => {
  const schema = z.object({ city: z.string() });
  return read(streamObject({ model: model(baseUrl), prompt, schema, onError() {} }).fullStream, say);
};

await serve({
  unary,
  stream,
  structured,
  tool: baseUrl => unary(baseUrl, withTools),
  tool_stream: baseUrl => stream(baseUrl, withTools),
});
