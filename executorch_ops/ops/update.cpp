#include "update.h"

namespace mobizo::executorch_ops {

using executorch::runtime::toString;

bool update_args(Tensor& param, const Tensor& seeds, const Tensor& coeffs, int64_t stream, double decay,
                 std::string_view distribution, const char* op, PerturbArgs* args) {
  if (!storage_dtype(param, op, "param", &args->dtype) || !check_storage(param, op, "param") ||
      !check_directions(seeds, coeffs, op) || !parse_distribution(distribution, op, &args->distribution))
    return false;
  args->param = param.mutable_data_ptr();
  args->numel = param.numel();
  set_distribution(*args, args->distribution, param.dim(), param.dim() > 0 ? param.size(0) : 1);
  args->seeds = seeds.const_data_ptr<int64_t>();
  args->coeffs = coeffs.const_data_ptr<float>();
  args->count = seeds.numel();
  args->stream = stream;
  args->decay = static_cast<float>(decay);
  return true;
}

bool check_state(Tensor& state, const Tensor& param, const char* op, const char* argument, float** data) {
  ET_CHECK_OR_RETURN_FALSE(state.scalar_type() == ScalarType::Float, "mobizo::%s: %s must be float32, got %s", op, argument,
                           toString(state.scalar_type()));
  ET_CHECK_OR_RETURN_FALSE(state.sizes().equals(param.sizes()), "mobizo::%s: %s must have the shape of param", op, argument);
  if (!check_storage(state, op, argument)) return false;
  *data = state.mutable_data_ptr<float>();
  return true;
}

bool check_all_apart(std::initializer_list<Argument> written, std::initializer_list<Argument> read, const char* op) {
  for (const Argument* one = written.begin(); one != written.end(); ++one) {
    for (const Argument* other = one + 1; other != written.end(); ++other)
      if (!check_apart(one->tensor, one->name, other->tensor, other->name, op)) return false;
    for (const Argument& other : read)
      if (!check_apart(one->tensor, one->name, other.tensor, other.name, op)) return false;
  }
  return true;
}

bool check_one_float(const Tensor& t, const char* op, const char* argument) {
  ET_CHECK_OR_RETURN_FALSE(t.scalar_type() == ScalarType::Float && t.dim() == 1 && t.numel() == 1,
                           "mobizo::%s: %s must be float32 of shape (1,)", op, argument);
  return check_storage(t, op, argument);
}

}  // namespace mobizo::executorch_ops
