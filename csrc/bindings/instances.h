// Instances of bound classes that are not made by calling the class.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

namespace gitfast::bindings {

// Cls.__new__(Cls) makes an instance without a value; pybind11 would give the first method that is called on it memory
// that nobody has written. With this the method, or the function it is passed to, throws TypeError.
template <class T, class... Options>
void require_init(pybind11::class_<T, Options...>& bound) {
  namespace py = pybind11;
  auto* info = py::detail::get_type_info(reinterpret_cast<PyTypeObject*>(bound.ptr()));
  info->operator_new = [](size_t) -> void* {
    throw py::type_error(py::type::of<T>().attr("__name__").template cast<std::string>() +
                         ": the object was never initialised; call the class, not its __new__");
  };
  // object's own, with protocols 0 and 1 of pickle, calls pybind11's base class, which throws where nobody catches.
  bound.def("__reduce__", [](const py::object& self) -> py::object {
    throw py::type_error("cannot pickle '" + py::type::of(self).attr("__name__").template cast<std::string>() +
                         "' object: it stays in its process; a model can be sent to others, and loads itself there");
  });
}

// pybind11's base class, and a class of Python over it alone, throw where nobody catches when they are called, as
// pickle's protocols 0 and 1 do. With this they throw TypeError, in every module that shares this version's base class.
inline void refuse_bare_instances() {
  namespace py = pybind11;
  auto* base = reinterpret_cast<PyTypeObject*>(py::detail::get_internals().instance_base);
  static newfunc make = nullptr;
  if (make) return;
  make = base->tp_new;
  base->tp_new = [](PyTypeObject* type, PyObject* args, PyObject* keywords) -> PyObject* {
    if (!py::detail::all_type_info(type).empty()) return make(type, args, keywords);
    PyErr_Format(PyExc_TypeError, "cannot create '%.100s' instances", type->tp_name);
    return nullptr;
  };
}

// A method for `def` and properties. pybind11 takes None for self where a pointer to a member is bound without py::arg,
// and calls it on null.
template <class T, class R, class... Args>
auto method(R (T::*member)(Args...) const) {
  return [member](const T& self, Args... args) { return (self.*member)(args...); };
}
template <class T, class R, class... Args>
auto method(R (T::*member)(Args...)) {
  return [member](T& self, Args... args) { return (self.*member)(args...); };
}

}  // namespace gitfast::bindings
