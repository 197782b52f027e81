// An editor of policies in place of a text field: colours, line numbers, completion, and faults underlined as one types.
"use strict";

(() => {
  const { autocompletion, completionKeymap, defaultKeymap, drawSelection, EditorView, highlightSpecialChars, HighlightStyle,
    history, historyKeymap, bracketMatching, indentService, indentUnit, indentWithTab, keymap, lineNumbers, linter, lintGutter, lintKeymap,
    StreamLanguage, syntaxHighlighting, syntaxTree, tags } = CodeMirror;
  // Browsers show a nonce to scripts of the page only, and only through this property.
  const { nonce } = document.currentScript;
  const CHECK_AFTER_MS = 300;
  const INDENT = 4;

  const roles = {
    keyword: tags.keyword,
    atom: tags.atom,
    comment: tags.lineComment,
    string: tags.string,
    number: tags.number,
    operator: tags.operator,
    kind: tags.typeName,
    tool: tags.labelName,
    field: tags.propertyName,
    function: tags.function(tags.variableName),
    detector: tags.standard(tags.variableName),
  };
  // By class, so that the style sheet has the colours of both themes.
  const colours = HighlightStyle.define(Object.entries(roles).map(([role, tag]) => ({ tag, class: `policy-${role}` })));

  function language({ keywords, constants, kinds, types, callables, patterns }) {
    const starting = (pattern) => new RegExp(`^(?:${pattern})`);
    const [name, number, operator, tool] = ["name", "number", "operator", "tool"].map((kind) => starting(patterns[kind]));
    const words = new Map([
      ...keywords.map((word) => [word, "keyword"]),
      ...constants.map((word) => [word, "atom"]),
      ...[...Object.keys(kinds), ...types].map((word) => [word, "kind"]),
      ...callables.map((word) => [word.name, word.role === "detector" ? "detector" : "function"]),
    ]);

    function string(stream, state) {
      while (!stream.eol()) {
        if (stream.match(state.quote)) {
          state.quote = "";
          break;
        }
        if (stream.next() === "\\") stream.next();
      }
      // Only a text in three quotes goes on in the next line, or one whose line ends in a backslash.
      if (state.quote.length === 1 && !stream.string.endsWith("\\")) state.quote = "";
      return "string";
    }

    function token(stream, state) {
      if (state.quote) return string(stream, state);
      if (stream.eatSpace()) return null;
      if (stream.eat("#")) {
        stream.skipToEnd();
        return "comment";
      }
      const opened = stream.match(/^[rRfF]{0,2}("""|'''|"|')/);
      if (opened) {
        state.quote = opened[1];
        return string(stream, state);
      }
      const { before } = state;
      if (["is", "not"].includes(before) && stream.match(tool)) return "tool";
      if (stream.match(name)) {
        state.before = stream.current();
        if (before === ".") return "field";
        return words.get(state.before) ?? null;
      }
      if (stream.match(number)) return "number";
      const sign = stream.match(operator);
      if (!sign) stream.next();
      state.before = stream.current();
      return sign && !/^[()[\]{},.:]$/.test(state.before) ? "operator" : null;
    }

    return StreamLanguage.define({
      name: "policy",
      startState: () => ({ quote: "", before: "" }),
      copyState: (state) => ({ ...state }),
      token,
      languageData: { commentTokens: { line: "#" } },
      tokenTable: roles,
    });
  }

  // A line is indented as the one above it, and further if that opens a block.
  function indentation(context, at) {
    const opens = /:=?\s*(#.*)?$/.test(context.lineAt(at, -1).text);
    return context.lineIndent(at, -1) + (opens ? INDENT : 0);
  }

  // What an author has named, with the kind of an event where it is declared.
  function named(text) {
    const declared = [...text.matchAll(/\(\s*([A-Za-z_]\w*)\s*:\s*([A-Za-z_]\w*)/g)].map(([, name, kind]) => [name, kind]);
    const defined = [...text.matchAll(/^\s*([A-Za-z_]\w*)\s*(?:\([^)]*\)\s*)?:=/gm)].map(([, name]) => [name, ""]);
    return new Map([...defined, ...declared]);
  }

  function completions({ keywords, constants, kinds, types, callables, methods, entities, modules }) {
    const plain = (type) => (label) => ({ label, type });
    const options = (words, type) => words.map(plain(type));
    const everywhere = [...options(keywords, "keyword"), ...options(constants, "constant")];

    function imports(view, completion, from, to) {
      const { name, module } = completion.word;
      const text = view.state.doc.toString();
      const known = new RegExp(`^\\s*from\\s+\\S+\\s+import\\b.*\\b${name}\\b`, "m").test(text);
      const changes = [{ from, to, insert: name }];
      if (module && !known) changes.push({ from: 0, insert: `from ${module} import ${name}\n` });
      const added = changes.length > 1 ? changes[1].insert.length : 0;
      view.dispatch({ changes, selection: { anchor: added + from + name.length }, userEvent: "input.complete" });
    }

    const called = callables.map((word) => ({
      label: word.name,
      detail: word.signature,
      info: word.module ? `${word.about} (from ${word.module})` : word.about,
      type: word.role === "detector" ? "class" : "function",
      word,
      apply: imports,
    }));

    function after(text, before) {
      let match;
      if (/^\s*from\s+[\w.]*$/.test(before)) return [/[\w.]*/, options(Object.keys(modules), "namespace")];
      if ((match = /^\s*from\s+([\w.]+)\s+import\b.*?\w*$/.exec(before))) return [/\w*/, options(modules[match[1]] ?? [], "variable")];
      if (/\(\s*\w+\s*:\s*\w*$/.test(before)) return [/\w*/, [...options(Object.keys(kinds), "type"), ...options(types, "type")]];
      if (/<\w*$/.test(before)) return [/\w*/, options(entities, "enum")];
      if (/\bfunction\.\w*$/.test(before)) return [/\w*/, options(["name", "arguments"], "property")];
      if ((match = /([A-Za-z_]\w*)\.\w*$/.exec(before)) && match[1] !== "input") {
        const fields = kinds[named(text).get(match[1])] ?? [];
        return [/\w*/, [...options(fields, "property"), ...(fields.length ? [] : options(methods, "method"))]];
      }
      if (/\.\w*$/.test(before)) return [/\w*/, options(methods, "method")];
      const own = [...named(text).keys()].map(plain("variable"));
      return [/\w*/, [...own, ...called, ...everywhere]];
    }

    return (context) => {
      if (["string", "comment"].includes(syntaxTree(context.state).resolveInner(context.pos, -1).name)) return null;
      const line = context.state.doc.lineAt(context.pos);
      const before = line.text.slice(0, context.pos - line.from);
      const [valid, found] = after(context.state.doc.toString(), before);
      const word = context.matchBefore(/[A-Za-z_][\w]*/);
      const from = valid.source.includes(".") ? context.matchBefore(/[\w.]*/)?.from ?? context.pos : word?.from ?? context.pos;
      if (!context.explicit && from === context.pos && !/[.<:]\s*$|import\s$/.test(before)) return null;
      return { from, options: found, validFor: new RegExp(`^${valid.source}$`) };
    };
  }

  // The server counts lines and characters from 1, the editor UTF-16 units from 0.
  function offset(doc, line, column) {
    const { from, text } = doc.line(Math.min(Math.max(line, 1), doc.lines));
    return from + [...text].slice(0, column - 1).join("").length;
  }

  function diagnostic(doc, { line, column, message, severity }) {
    const from = offset(doc, line, column);
    const { to: end, text, from: start } = doc.lineAt(from);
    const word = /^(?:\w+|"[^"]*"|'[^']*'|\S)/u.exec(text.slice(from - start))?.[0] ?? "";
    // At the end of a line the character before is underlined: nothing has no width.
    return { from: word ? from : Math.max(start, from - 1), to: Math.min(end, from + word.length), message, severity };
  }

  /* Replaces a text field. `vocabulary` has the words of the language; `check(text)` returns faults with `line`,
     `column`, `message` and `severity`; `submit()` is for Ctrl+Enter. Returns what a page does with the editor. */
  function edit(field, { vocabulary, check, submit, labelledBy, describedBy }) {
    const run = () => { submit(); return true; };
    const source = async ({ state: { doc } }) => (await check(doc.toString())).map((fault) => diagnostic(doc, fault));
    const view = new EditorView({
      doc: field.value,
      parent: field.parentElement,
      extensions: [
        EditorView.cspNonce.of(nonce),
        EditorView.contentAttributes.of({ "aria-labelledby": labelledBy, "aria-describedby": describedBy, autocapitalize: "off" }),
        lineNumbers(), lintGutter(), history(), drawSelection(), highlightSpecialChars(), bracketMatching(),
        indentUnit.of(" ".repeat(INDENT)), indentService.of(indentation),
        language(vocabulary), syntaxHighlighting(colours),
        autocompletion({ override: [completions(vocabulary)], icons: false }),
        linter(source, { delay: CHECK_AFTER_MS }),
        keymap.of([
          { key: "Ctrl-Enter", mac: "Cmd-Enter", run },
          // Tab indents; after Escape it leaves the editor, as everywhere else.
          ...completionKeymap, ...historyKeymap, ...lintKeymap, indentWithTab, ...defaultKeymap,
        ]),
      ],
    });
    // What is shown is what is sent, whatever the browser put into the field again.
    field.form.addEventListener("formdata", ({ formData }) => formData.set(field.name, view.state.doc.toString()));
    const label = document.getElementById(labelledBy);
    label.removeAttribute("for");
    label.addEventListener("click", () => view.focus());
    if (document.activeElement === field) view.focus();
    // A field that is not seen cannot say that it must be filled in: the server says it.
    field.required = false;
    field.hidden = true;

    return {
      get text() { return view.state.doc.toString(); },
      goTo(line, column) {
        const anchor = offset(view.state.doc, line, column);
        view.dispatch({ selection: { anchor, head: Math.min(anchor + 1, view.state.doc.length) }, scrollIntoView: true });
        view.focus();
      },
    };
  }

  globalThis.editPolicy = edit;
})();
