#include "tokenizer/pages.hpp"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <new>

namespace omr {

namespace {

constexpr std::size_t kLine = 64;

std::size_t round_up(std::size_t size, std::size_t unit) { return (size + unit - 1) / unit * unit; }

#ifdef MADV_HUGEPAGE
// `size` bytes, a multiple of kHugePage, aligned to it; nullptr if there is no room.
std::uint8_t* map_aligned(std::size_t size) {
    const std::size_t mapped = size + kHugePage;
    void* const memory = ::mmap(nullptr, mapped, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    auto* const begin = static_cast<std::uint8_t*>(memory);
    const std::size_t before = -reinterpret_cast<std::uintptr_t>(begin) % kHugePage;
    if (before != 0) ::munmap(begin, before);
    if (before != kHugePage) ::munmap(begin + before + size, kHugePage - before);
    ::madvise(begin + before, size, MADV_HUGEPAGE);  // refused: then they are small pages
    return begin + before;
}
#endif

}  // namespace

Pages::Pages(std::size_t size, bool zeroed) {
#ifdef MADV_HUGEPAGE
    if (size >= kHugePage) {
        const std::size_t mapped = round_up(size, kHugePage);
        data_ = {map_aligned(mapped), Free(mapped)};
        if (data_ == nullptr) throw std::bad_alloc();
        return;
    }
#endif
    const std::size_t room = round_up(size, kLine);
    data_.reset(static_cast<std::uint8_t*>(std::aligned_alloc(kLine, room)));
    if (data_ == nullptr) throw std::bad_alloc();
    if (zeroed) std::memset(data_.get(), 0, room);
}

void Pages::Free::operator()(std::uint8_t* data) const {
    if (mapped == 0) {
        std::free(data);
    } else {
        ::munmap(data, mapped);
    }
}

}  // namespace omr
