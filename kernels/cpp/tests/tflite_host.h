// A small TensorFlow Lite interpreter for tests: reads a .tflite file, gives its graph to a delegate and runs what the
// delegate claims. It promises no more than the real one does: tensors begin and end at the edges of blocks of their
// own, constants lie at addresses of 4 (not 16), tensors between claimed nodes have no memory. Nodes that the delegate
// leaves alone fill their outputs with a pattern.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../tflite/abi.h"

namespace bnnedge::tflite {

// Thrown for a file that the real interpreter does not load either.
class Refused : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class Host {
 public:
  // `most_bytes`: a larger tensor is refused, as if memory were short.
  Host(const uint8_t* file, size_t size, int threads, int64_t most_bytes);
  ~Host();
  Host(const Host&) = delete;
  Host& operator=(const Host&) = delete;

  // Each returns whether it succeeded; if not, `error()` is the message of the delegate or of this interpreter.
  bool Apply(Delegate* delegate);
  bool AllocateTensors();
  bool Invoke();
  // Sets the first axis of all inputs. AllocateTensors must follow.
  bool ResizeBatch(int batch);

  // Fills the inputs with values that depend on `seed` alone.
  void FillInputs(uint32_t seed);
  void FillOutputs(unsigned char poison);
  // The type and the bytes of each output of the model.
  std::vector<std::pair<int, std::vector<unsigned char>>> Outputs() const;

  // The places (offset, bytes) of a file that hold shapes, types, indices and options, but no weights. There are none
  // if the bytes are no such file.
  static std::vector<std::pair<size_t, size_t>> Structure(const uint8_t* file, size_t size);

  const std::string& error() const { return error_; }
  // The number of nodes that run on the delegate.
  int DelegateNodes() const;
  // The number of nodes of the file that these replace.
  int ClaimedNodes() const;

 private:
  struct Implementation;
  std::unique_ptr<Implementation> implementation_;
  std::string error_;
};

}  // namespace bnnedge::tflite
