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

// The file is one that the real interpreter does not load either.
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

  // Each returns whether it succeeded; if not, `error()` is what the delegate or this interpreter had to say.
  bool Apply(Delegate* delegate);
  bool AllocateTensors();
  bool Invoke();
  // Sets the first axis of all inputs, to be followed by AllocateTensors.
  bool ResizeBatch(int batch);

  // Fills inputs by `seed`.
  void FillInputs(uint32_t seed);
  void FillOutputs(unsigned char poison);
  // Type and bytes of each output of the model.
  std::vector<std::pair<int, std::vector<unsigned char>>> Outputs() const;

  // Places (offset, bytes) in a file that hold shapes, types, indices and options, not weights; empty for no file.
  static std::vector<std::pair<size_t, size_t>> Structure(const uint8_t* file, size_t size);

  const std::string& error() const { return error_; }
  // Nodes that run on the delegate.
  int DelegateNodes() const;
  // And those of the file that they stand for.
  int ClaimedNodes() const;

 private:
  struct Implementation;
  std::unique_ptr<Implementation> implementation_;
  std::string error_;
};

}  // namespace bnnedge::tflite
