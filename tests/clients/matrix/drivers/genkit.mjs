// Genkit with its Google plugin. The application keeps the history of a chat.
import { KEY, MODEL, SCHEMAS, TOOLS, load, serve } from './driver.mjs';

const { genkit, z } = load('genkit');
const { googleAI } = load('@genkit-ai/google-genai');

const open = baseUrl => {
  const ai = genkit({ plugins: [googleAI({ apiKey: KEY, baseUrl })], model: googleAI.model(MODEL) });
  const tools = Object.entries(SCHEMAS).map(([name, [description, argument]]) => ai.defineTool(
    { name, description, inputSchema: z.object({ [argument]: z.string() }), outputSchema: z.string() },
    async args => TOOLS[name](args),
  ));
  return { ai, tools };
};

const unary = (baseUrl, withTools) => {
  const { ai, tools } = open(baseUrl);
  return async (prompt, say) => say((await ai.generate({ prompt, tools: withTools ? tools : [] })).text);
};

const stream = (baseUrl, withTools, output) => {
  const { ai, tools } = open(baseUrl);
  return async (prompt, say) => {
    const { stream: chunks, response } = ai.generateStream({ prompt, tools: withTools ? tools : [], output });
    for await (const chunk of chunks) say(chunk.text);
    await response;
  };
};

await serve({
  unary,
  stream,
  structured: baseUrl => stream(baseUrl, false, { schema: z.object({ city: z.string() }) }),
  tool: baseUrl => unary(baseUrl, true),
  tool_stream: baseUrl => stream(baseUrl, true),
});
