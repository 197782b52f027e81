// What the drivers in JavaScript have in common: tasks come in as lines of JSON, and what the client showed goes out.
// A driver runs in the folder of its client's own packages.
import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';

export const MODEL = 'gemini-2.5-flash';
export const KEY = 'AIzaTestKey';
export const load = createRequire(`${process.cwd()}/driver.js`);

// The tools that the client has run.
const ran = [];
export const TOOLS = {
  weather: ({ city }) => (ran.push('weather'), `It is sunny in ${city}.`),
  delete_file: ({ path }) => (ran.push('delete_file'), `${path} is gone.`),
};
// What each tool does, and the name of its one argument, which is a text.
export const SCHEMAS = {
  weather: ['Tell the weather in a city.', 'city'],
  delete_file: ['Delete a file.', 'path'],
};

// Does the tasks of standard input with `operations`: each makes, for the proxy at a base URL, a function that puts a
// prompt to the client and calls `say` with each piece of text that is shown. A chat keeps its history between prompts.
export async function serve(operations) {
  const write = text => process.stdout.write(text);
  console.log = console.error;
  for await (const line of createInterface({ input: process.stdin })) {
    const { base_url, do: name, prompts } = JSON.parse(line);
    const turns = [];
    let ask;
    for (const prompt of prompts) {
      const said = [];
      let raised = null;
      ran.length = 0;
      try {
        ask ??= operations[name](base_url);
        await ask(prompt, text => said.push(text));
      } catch (error) {
        raised = `${error.name}: ${error.message}`;
      }
      turns.push({ text: said.join(''), raised, ran: [...ran] });
    }
    write(`${JSON.stringify({ turns })}\n`);
  }
  process.exit(0);
}

// The tools as Gemini's own declarations.
export const declarations = () => Object.entries(SCHEMAS).map(([name, [description, argument]]) => ({
  name,
  description,
  parameters: { type: 'OBJECT', properties: { [argument]: { type: 'STRING' } }, required: [argument] },
}));
export const CITY = { type: 'OBJECT', properties: { city: { type: 'STRING' } }, required: ['city'] };
