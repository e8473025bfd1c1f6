-- A target that nobody gave an image is not used here: suspended, not broken.
local hs = {status = "Progressing", message = "The operator has not seen it yet"}
if obj.status == nil or obj.status.conditions == nil then
  return hs
end
if obj.status.observedGeneration ~= obj.metadata.generation then
  hs.message = "The operator has not seen the latest change yet"
  return hs
end
for _, condition in ipairs(obj.status.conditions) do
  if condition.type == "Ready" then
    hs.message = condition.reason .. ": " .. condition.message
    if condition.status == "True" then
      hs.status = "Healthy"
    elseif condition.reason == "ImageNotConfigured" then
      hs.status = "Suspended"
    elseif condition.status == "False" then
      hs.status = "Degraded"
    end
  end
end
return hs
