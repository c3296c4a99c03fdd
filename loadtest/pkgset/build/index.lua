-- Reads .attrs.json and writes one line a package: name, version, outputs, and the NAR sizes of its closure's paths.
-- (Nix 2.8 names the file by its path outside of the sandbox, where it is not to be seen.)
local file = assert(io.open(os.getenv("NIX_ATTRS_JSON_FILE") or "") or io.open(".attrs.json"))
local text = file:read("a")
file:close()

local function decode(position)
  position = text:find("%S", position)
  local first = text:sub(position, position)
  if first == "{" or first == "[" then
    local value, index = {}, 0
    position = position + 1
    while true do
      position = text:find("[^%s,]", position)
      if text:sub(position, position):find("[%]}]") then return value, position + 1 end
      local key
      if first == "{" then
        key, position = decode(position)
        position = text:find(":", position, true) + 1
      else
        index = index + 1
        key = index
      end
      value[key], position = decode(position)
    end
  elseif first == '"' then
    local parts = {}
    position = position + 1
    while true do
      local char = text:sub(position, position)
      if char == '"' then return table.concat(parts), position + 1 end
      if char == "\\" then
        position = position + 1
        local escaped = text:sub(position, position)
        char = ({ n = "\n", t = "\t", r = "\r", b = "\b", f = "\f" })[escaped] or escaped
        if escaped == "u" then
          char = utf8.char(tonumber(text:sub(position + 1, position + 4), 16))
          position = position + 4
        end
      end
      parts[#parts + 1] = char
      position = position + 1
    end
  end
  local word = text:match("^[%w%.%+%-]+", position)
  local words = { ["true"] = true, ["false"] = false, null = false }
  local value = words[word]
  if value == nil then value = assert(tonumber(word), "bad JSON at " .. position) end
  return value, position + #word
end

local attrs = decode(1)
assert(attrs.limits.nested[2][3] == 'quote"d', "nested attributes came through changed")
local out = assert(io.open(attrs.outputs.out, "w"))
local names = {}
for name in pairs(attrs.subjects) do names[#names + 1] = name end
table.sort(names)
for _, name in ipairs(names) do
  local subject = attrs.subjects[name]
  out:write(("%s %s %s\n"):format(subject.pname, subject.version, table.concat(subject.outputs, ",")))
end
local sizes = {}
for _, path in ipairs(attrs.graph) do sizes[#sizes + 1] = ("%d %d %s\n"):format(path.narSize, #path.references, path.path) end
table.sort(sizes)
out:write(table.concat(sizes))
out:close()
