// Checking a request by the schema that the service publishes: the part of JSON Schema that it uses. What this misses,
// the service still refuses.

const TYPES = {
  string: (value) => typeof value === "string",
  integer: Number.isInteger,
  number: (value) => typeof value === "number",
  boolean: (value) => typeof value === "boolean",
  null: (value) => value === null,
  array: Array.isArray,
  object: (value) => typeof value === "object" && value !== null && !Array.isArray(value),
};
const NAMES = {
  string: "text",
  integer: "a whole number",
  number: "a number",
  boolean: "true or false",
  null: "null",
  array: "a list",
  object: "keys and values",
};

// The schema of a job of this `kind`, in the description of the whole service.
export function schemaOf(openapi, kind) {
  const { schema } = openapi.paths["/api/v1/jobs"].post.requestBody.content["application/json"];
  return { root: openapi, schema: resolve({ $ref: schema.discriminator.mapping[kind] }, openapi) };
}

export function resolve(schema, root) {
  if (!schema.$ref) return schema;
  return schema.$ref
    .slice(2)
    .split("/")
    .reduce((part, name) => part[name], root);
}

// What is wrong with `value`: [{path, text}], empty if nothing is. A path is that of a key, as in layers[0].match.
export function problems(value, { schema, root }, path = "") {
  const found = resolve(schema, root);
  const choices = found.anyOf ?? found.oneOf;
  if (choices) return ofChoices(value, choices, root, path);
  const wrong = (expected) => [{ path, text: `found ${shown(value)}, expected ${expected}` }];
  if ("const" in found && value !== found.const) return wrong(shown(found.const));
  if (found.enum && !found.enum.includes(value)) return wrong(`one of ${found.enum.map(shown).join(", ")}`);
  if (found.type && !TYPES[found.type](value)) return wrong(NAMES[found.type]);
  return [...limits(value, found, wrong), ...ofItems(value, found, root, path), ...ofKeys(value, found, root, path)];
}

// Of several schemas one must fit; of those that do not, the one with the right type says what is wrong.
function ofChoices(value, choices, root, path) {
  const all = choices.map((schema) => problems(value, { schema, root }, path));
  if (all.some((each) => !each.length)) return [];
  const typed = choices.findIndex((schema) => TYPES[resolve(schema, root).type]?.(value));
  if (typed >= 0) return all[typed];
  const names = choices
    .map((schema) => resolve(schema, root))
    .filter((schema) => schema.type !== "null")
    .map((schema) => NAMES[schema.type] ?? (schema.enum ?? [schema.const]).map(shown).join(", "));
  return [{ path, text: `found ${shown(value)}, expected ${[...new Set(names)].join(" or ")}` }];
}

function limits(value, schema, wrong) {
  const size = typeof value === "string" || Array.isArray(value) ? value.length : null;
  const tests = [
    [schema.minimum !== undefined && value < schema.minimum, () => `at least ${schema.minimum}`],
    [schema.maximum !== undefined && value > schema.maximum, () => `at most ${schema.maximum}`],
    [schema.exclusiveMinimum !== undefined && value <= schema.exclusiveMinimum, () => `more than ${schema.exclusiveMinimum}`],
    [schema.exclusiveMaximum !== undefined && value >= schema.exclusiveMaximum, () => `less than ${schema.exclusiveMaximum}`],
    [
      size !== null && size < (schema.minLength ?? schema.minItems ?? 0),
      () => (size ? `at least ${schema.minLength ?? schema.minItems} of them` : "something"),
    ],
    [
      size !== null && size > (schema.maxLength ?? schema.maxItems ?? Infinity),
      () => `at most ${schema.maxLength ?? schema.maxItems} of them`,
    ],
    [typeof value === "string" && schema.pattern && !matches(schema.pattern, value), () => `text of the form ${schema.pattern}`],
  ];
  const failed = tests.find(([fails]) => fails);
  return failed ? wrong(failed[1]()) : [];
}

function matches(pattern, value) {
  try {
    return new RegExp(pattern, "u").test(value);
  } catch {
    return true; // a pattern of another dialect: the service checks it
  }
}

function ofItems(value, schema, root, path) {
  if (!Array.isArray(value) || !schema.items) return [];
  return value.flatMap((each, index) => problems(each, { schema: schema.items, root }, `${path}[${index}]`));
}

function ofKeys(value, schema, root, path) {
  if (!TYPES.object(value) || !schema.properties) return [];
  const under = (key) => (path ? `${path}.${key}` : key);
  const known = Object.keys(schema.properties);
  const missing = (schema.required ?? []).filter((key) => !(key in value)).map((key) => ({ path: under(key), text: "is missing" }));
  const unknown = schema.additionalProperties === false ? Object.keys(value).filter((key) => !known.includes(key)) : [];
  return [
    ...missing,
    ...unknown.map((key) => ({ path: under(key), text: `is no key here; the keys are ${known.join(", ")}` })),
    ...Object.entries(value)
      .filter(([key]) => known.includes(key))
      .flatMap(([key, each]) => problems(each, { schema: schema.properties[key], root }, under(key))),
  ];
}

function shown(value) {
  const text = JSON.stringify(value) ?? String(value);
  return text.length > 60 ? `${text.slice(0, 57)}…` : text;
}

// `value` without the keys whose values are the defaults: shorter, and the same request.
export function concise(value, { schema, root }) {
  const found = fitting(value, schema, root);
  if (Array.isArray(value)) return value.map((each) => concise(each, { schema: found.items ?? {}, root }));
  if (!TYPES.object(value) || !found.properties) return value;
  const kept = Object.entries(value).filter(([key, each]) => !isDefault(each, found.properties[key], found.required?.includes(key)));
  return Object.fromEntries(kept.map(([key, each]) => [key, concise(each, { schema: found.properties[key] ?? {}, root })]));
}

function fitting(value, schema, root) {
  const found = resolve(schema, root);
  const choices = found.anyOf ?? found.oneOf;
  return choices ? resolve(choices.find((each) => !problems(value, { schema: each, root }).length) ?? {}, root) : found;
}

// The description leaves out defaults that are null; a list that cannot be null and states no default is empty by default.
function isDefault(value, schema, required) {
  if (!schema || required) return false;
  if ("default" in schema) return JSON.stringify(schema.default) === JSON.stringify(value);
  if ((schema.anyOf ?? []).some((each) => each.type === "null")) return value === null;
  return Array.isArray(value) && !value.length;
}
