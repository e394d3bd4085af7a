// edgeqkv.h for the class io.github.edgeqkv.Native, which has the same functions.
//
// What Java may do wrong must not end the process: a handle is a number that is looked up here, never a pointer, so that one
// that was closed is refused; every error becomes an EdgeQKVException, and nothing is thrown across the boundary. Texts are
// byte arrays of UTF-8: JNI's own strings are of a modified kind, and abort on any other.
#include <edgeqkv.h>
#include <jni.h>
#include <worker.h>

#include <cstring>
#include <exception>
#include <iterator>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <unordered_map>
#include <vector>

namespace {

// Written by JNI_OnLoad, before any other function here can be called.
struct {
  jclass native;
  jmethodID failure, on_token;
} java;

// ---- Errors ----

struct Failure {
  int32_t code;
  std::string sentence;
};

// A Java exception is pending: the way back to Java.
struct Pending {};

void must(int32_t code) {
  if (code != EDGEQKV_SUCCESS) throw Failure{code, edgeqkv_error()};
}

template <class Reference>
Reference made(Reference reference) {
  if (!reference) throw Pending();  // OutOfMemoryError
  return reference;
}

jbyteArray bytes_of(JNIEnv* env, const char* text, size_t size) {
  if (size > size_t(std::numeric_limits<jsize>::max())) throw std::bad_alloc();
  const jbyteArray out = made(env->NewByteArray(jsize(size)));
  env->SetByteArrayRegion(out, 0, jsize(size), reinterpret_cast<const jbyte*>(text));
  return out;
}

void raise(JNIEnv* env, int32_t code, const char* sentence) noexcept {
  try {
    const jbyteArray text = bytes_of(env, sentence, std::strlen(sentence));
    const jobject exception = env->CallStaticObjectMethod(java.native, java.failure, jint(code), text);
    if (!env->ExceptionCheck()) env->Throw(static_cast<jthrowable>(exception));
  } catch (...) {  // the OutOfMemoryError is pending
  }
}

// What every function does: its work, and errors as Java's.
template <class Work>
auto guarded(JNIEnv* env, Work work) noexcept -> decltype(work()) {
  try {
    return work();
  } catch (const Pending&) {
  } catch (const Failure& failure) {
    raise(env, failure.code, failure.sentence.c_str());
  } catch (const std::bad_alloc&) {
    raise(env, EDGEQKV_MISSING, "there is not enough memory");
  } catch (const std::exception& error) {  // of the worker, which is not behind edgeqkv.h
    raise(env, EDGEQKV_CHECK_FAILED, error.what());
  }
  return decltype(work())();
}

// ---- Handles ----

struct SessionObject {
  SessionObject(edgeqkv_session* opened, size_t logits) : session(opened), vocab_size(logits) {}
  SessionObject(const SessionObject&) = delete;
  SessionObject& operator=(const SessionObject&) = delete;
  // Whoever has the last reference is the only one who can be in a call, so that this is never refused.
  ~SessionObject() { edgeqkv_session_close(session); }

  edgeqkv_session* const session;
  const size_t vocab_size;
};

using BundleReference = std::shared_ptr<edgeqkv_bundle>;
using SessionReference = std::shared_ptr<SessionObject>;

// Handles and what they stand for. A call holds a reference for as long as it runs.
template <class Object>
class Table {
 public:
  explicit Table(const char* closed) : closed_(closed) {}

  jlong add(std::shared_ptr<Object> object) {
    const std::lock_guard<std::mutex> lock(mutex_);
    objects_.emplace(++last_, std::move(object));
    return last_;
  }

  std::shared_ptr<Object> at(jlong handle) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = objects_.find(handle);
    if (found == objects_.end()) throw Failure{EDGEQKV_BAD_INPUT, closed_};
    return found->second;
  }

  // For what takes no time: other threads' handles wait meanwhile. nullptr where the handle is closed.
  template <class Work>
  auto peek(jlong handle, Work work) -> decltype(work(nullptr)) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = objects_.find(handle);
    return work(found == objects_.end() ? nullptr : found->second.get());
  }

  // Gives the table's reference, nullptr if the handle was closed before. With `idle_only` it is refused during a call.
  std::shared_ptr<Object> remove(jlong handle, bool idle_only) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = objects_.find(handle);
    if (found == objects_.end()) return nullptr;
    // Only this table hands out references, under its lock: at 1 nobody is in a call, and nobody gets in.
    if (idle_only && found->second.use_count() > 1)
      throw Failure{EDGEQKV_BUSY, "the session is in use, by another thread or by the call that this one was made from"};
    std::shared_ptr<Object> object = std::move(found->second);
    objects_.erase(found);
    return object;
  }

  const char* closed() const { return closed_; }

 private:
  const char* const closed_;
  std::mutex mutex_;
  std::unordered_map<jlong, std::shared_ptr<Object>> objects_;
  jlong last_ = 0;
};

// Never destroyed: threads of Java's may still be in a call while the process ends.
Table<edgeqkv_bundle>& bundles() {
  static auto* const table = new Table<edgeqkv_bundle>("the bundle is closed");
  return *table;
}

Table<SessionObject>& sessions() {
  static auto* const table = new Table<SessionObject>("the session is closed");
  return *table;
}

edgeqkv_bundle_info info_of(const BundleReference& bundle) {
  edgeqkv_bundle_info info = {};
  info.size = sizeof info;
  must(edgeqkv_bundle_describe(bundle.get(), &info));
  return info;
}

// ---- Arguments and results ----

std::string text_of(JNIEnv* env, jbyteArray text) {
  std::string out(size_t(env->GetArrayLength(text)), '\0');
  env->GetByteArrayRegion(text, 0, jsize(out.size()), reinterpret_cast<jbyte*>(&out[0]));
  return out;
}

// A name that C reads up to its zero: with one inside, another file would be meant than Java's caller checked.
std::string name_of(JNIEnv* env, jbyteArray text) {
  std::string out = text ? text_of(env, text) : std::string();
  if (out.find('\0') != std::string::npos) throw Failure{EDGEQKV_BAD_INPUT, "a name contains the character U+0000"};
  return out;
}

std::vector<int64_t> ids_of(JNIEnv* env, jlongArray ids) {
  std::vector<int64_t> out(size_t(env->GetArrayLength(ids)));
  static_assert(sizeof(jlong) == sizeof(int64_t));
  env->GetLongArrayRegion(ids, 0, jsize(out.size()), reinterpret_cast<jlong*>(out.data()));
  return out;
}

jlongArray longs_of(JNIEnv* env, const int64_t* values, size_t n) {
  if (n > size_t(std::numeric_limits<jsize>::max())) throw std::bad_alloc();
  const jlongArray out = made(env->NewLongArray(jsize(n)));
  env->SetLongArrayRegion(out, 0, jsize(n), reinterpret_cast<const jlong*>(values));
  return out;
}

// What `fill(data, capacity, &n)` writes, asked again where the first guess at its size was too small.
template <class Item, class Fill>
std::vector<Item> filled(size_t guess, Fill fill) {
  std::vector<Item> out(guess);
  for (size_t n = 0;; out.resize(n)) {
    must(fill(out.data(), out.size(), &n));
    if (n <= out.size()) {
      out.resize(n);
      return out;
    }
  }
}

// ---- The functions of Native.kt ----

namespace native {

jbyteArray version(JNIEnv* env, jclass) {
  return guarded(env, [&] { return bytes_of(env, edgeqkv_version(), std::strlen(edgeqkv_version())); });
}

jlongArray memory(JNIEnv* env, jclass) {
  return guarded(env, [&] {
    edgeqkv_memory_info now = {};
    now.size = sizeof now;
    must(edgeqkv_memory(&now));
    const int64_t values[] = {now.peak_rss, now.rss, now.pss, now.private_rss};
    return longs_of(env, values, std::size(values));
  });
}

jlong open(JNIEnv* env, jclass, jbyteArray folder, jbyteArray runtime, jbyteArray kernel, jint threads, jboolean unchecked,
           jbyteArray onnxruntime, jbyteArray executorch) {
  return guarded(env, [&] {
    const std::string names[] = {name_of(env, runtime), name_of(env, kernel), name_of(env, onnxruntime),
                                 name_of(env, executorch)};
    auto given = [](const std::string& name) { return name.empty() ? nullptr : name.c_str(); };
    edgeqkv_open_options options = {};
    options.size = sizeof options;
    options.runtime = given(names[0]);
    options.kernel = given(names[1]);
    options.threads = threads;
    options.unchecked = unchecked;
    options.onnxruntime_library = given(names[2]);
    options.executorch_library = given(names[3]);
    edgeqkv_bundle* opened = nullptr;
    must(edgeqkv_bundle_open(name_of(env, folder).c_str(), &options, &opened));
    return bundles().add(BundleReference(opened, edgeqkv_bundle_close));
  });
}

// Calls that run on other threads keep the bundle until they return.
void close_bundle(JNIEnv* env, jclass, jlong bundle) {
  guarded(env, [&] { bundles().remove(bundle, /*idle_only=*/false); });
}

jobjectArray bundle_texts(JNIEnv* env, jclass, jlong handle) {
  return guarded(env, [&] {
    const BundleReference bundle = bundles().at(handle);
    const edgeqkv_bundle_info info = info_of(bundle);
    const char* const texts[] = {info.variant, info.runtime,     info.runtime_version,   info.kernel,
                                 info.weights, info.cache_dtype, info.tokenizer_missing, edgeqkv_bundle_json(bundle.get())};
    const jclass type = made(env->FindClass("[B"));
    const jobjectArray out = made(env->NewObjectArray(jsize(std::size(texts)), type, nullptr));
    for (jsize i = 0; i < jsize(std::size(texts)); i++)
      if (texts[i]) env->SetObjectArrayElement(out, i, bytes_of(env, texts[i], std::strlen(texts[i])));
    return out;
  });
}

jlongArray bundle_numbers(JNIEnv* env, jclass, jlong handle) {
  return guarded(env, [&] {
    const BundleReference bundle = bundles().at(handle);
    const edgeqkv_bundle_info info = info_of(bundle);
    std::vector<int64_t> numbers = {info.capacity,      info.vocab_size,  info.token_count,
                                    info.prefill_chunk, info.cache_bytes, int64_t(info.check_seconds * 1e9)};
    numbers.insert(numbers.end(), info.end_tokens, info.end_tokens + info.n_end_tokens);
    return longs_of(env, numbers.data(), numbers.size());
  });
}

jlongArray encode(JNIEnv* env, jclass, jlong handle, jbyteArray text, jboolean add_special) {
  return guarded(env, [&] {
    const BundleReference bundle = bundles().at(handle);
    const std::string given = text_of(env, text);
    constexpr size_t kAround = 8;  // hardly a text has more tokens than bytes and these
    const auto ids = filled<int64_t>(given.size() + kAround, [&](int64_t* out, size_t capacity, size_t* n) {
      return edgeqkv_bundle_encode(bundle.get(), given.data(), given.size(), add_special, out, capacity, n);
    });
    return longs_of(env, ids.data(), ids.size());
  });
}

jbyteArray decode(JNIEnv* env, jclass, jlong handle, jlongArray ids) {
  return guarded(env, [&] {
    const BundleReference bundle = bundles().at(handle);
    const std::vector<int64_t> given = ids_of(env, ids);
    constexpr size_t kBytesOfToken = 8;
    const auto text = filled<char>(given.size() * kBytesOfToken, [&](char* out, size_t capacity, size_t* n) {
      return edgeqkv_bundle_decode(bundle.get(), given.data(), given.size(), out, capacity, n);
    });
    return bytes_of(env, text.data(), text.size());
  });
}

jlong new_session(JNIEnv* env, jclass, jlong handle) {
  return guarded(env, [&] {
    const BundleReference bundle = bundles().at(handle);
    edgeqkv_session* session = nullptr;
    must(edgeqkv_session_open(bundle.get(), &session));
    return sessions().add(std::make_shared<SessionObject>(session, size_t(info_of(bundle).vocab_size)));
  });
}

void close_session(JNIEnv* env, jclass, jlong session) {
  guarded(env, [&] { sessions().remove(session, /*idle_only=*/true); });
}

jint depth(JNIEnv* env, jclass, jlong session) {
  return guarded(env, [&] {
    return jint(sessions().peek(session, [](const SessionObject* found) {
      if (!found) throw Failure{EDGEQKV_BAD_INPUT, sessions().closed()};
      return edgeqkv_session_depth(found->session);
    }));
  });
}

void cancel(JNIEnv* env, jclass, jlong session) {
  guarded(env, [&] {
    sessions().peek(session, [](const SessionObject* found) {
      if (found) edgeqkv_session_cancel(found->session);
    });
  });
}

jlongArray tokens(JNIEnv* env, jclass, jlong handle) {
  return guarded(env, [&] {
    const SessionReference object = sessions().at(handle);
    const auto guess = size_t(edgeqkv_session_depth(object->session));
    const auto ids = filled<int64_t>(guess, [&](int64_t* out, size_t capacity, size_t* n) {
      return edgeqkv_session_tokens(object->session, out, capacity, n);
    });
    return longs_of(env, ids.data(), ids.size());
  });
}

jboolean logits(JNIEnv* env, jclass, jlong handle, jfloatArray into) {
  return guarded(env, [&]() -> jboolean {
    const SessionReference object = sessions().at(handle);
    if (size_t(env->GetArrayLength(into)) != object->vocab_size)
      throw Failure{EDGEQKV_BAD_INPUT, "there are " + std::to_string(object->vocab_size) + " logits, and the array holds " +
                                           std::to_string(env->GetArrayLength(into))};
    const float* found = nullptr;
    must(edgeqkv_session_logits(object->session, &found));
    if (!found) return JNI_FALSE;
    env->SetFloatArrayRegion(into, 0, jsize(object->vocab_size), found);
    return JNI_TRUE;
  });
}

// edgeqkv_session_prefill or edgeqkv_session_feed.
using RunIds = int32_t (*)(edgeqkv_session*, const int64_t*, size_t, const float**);

void run_ids(JNIEnv* env, jlong session, jlongArray ids, RunIds run) {
  guarded(env, [&] {
    const SessionReference object = sessions().at(session);
    const std::vector<int64_t> given = ids_of(env, ids);
    must(run(object->session, given.data(), given.size(), nullptr));
  });
}

void prefill(JNIEnv* env, jclass, jlong session, jlongArray ids) { run_ids(env, session, ids, edgeqkv_session_prefill); }

void step(JNIEnv* env, jclass, jlong session, jlong id) {
  guarded(env, [&] { must(edgeqkv_session_step(sessions().at(session)->session, id, nullptr)); });
}

void feed(JNIEnv* env, jclass, jlong session, jlongArray ids) { run_ids(env, session, ids, edgeqkv_session_feed); }

void rewind(JNIEnv* env, jclass, jlong session, jint depth) {
  guarded(env, [&] { must(edgeqkv_session_rewind(sessions().at(session)->session, depth)); });
}

struct Listener {
  JNIEnv* env;
  jobject listener;
};

// Called from inside of libedgeqkv. What Java throws stays pending until generate() is back.
int32_t on_token(void* user, int64_t id, const char* text, size_t text_bytes) noexcept {
  const Listener& to = *static_cast<Listener*>(user);
  if (to.env->ExceptionCheck()) return 1;
  const jbyteArray piece = to.env->NewByteArray(jsize(text_bytes));  // of one token
  if (!piece) return 1;
  to.env->SetByteArrayRegion(piece, 0, jsize(text_bytes), reinterpret_cast<const jbyte*>(text));
  const jboolean more = to.env->CallStaticBooleanMethod(java.native, java.on_token, to.listener, jlong(id), piece);
  to.env->DeleteLocalRef(piece);  // a call has room for a few hundred only
  return to.env->ExceptionCheck() || !more;
}

jint generate(JNIEnv* env, jclass, jlong session, jlongArray ids, jint limit, jdouble temperature, jint top_k, jdouble top_p,
              jdouble repetition_penalty, jlong seed, jlongArray end_tokens, jboolean ignore_end_tokens, jobject listener) {
  return guarded(env, [&] {
    const SessionReference object = sessions().at(session);
    const std::vector<int64_t> given = ids_of(env, ids), ends = ids_of(env, end_tokens);
    edgeqkv_generate_options options = {};
    options.size = sizeof options;
    options.limit = limit;
    options.temperature = temperature;
    options.top_k = top_k;
    options.top_p = top_p;
    options.repetition_penalty = repetition_penalty;
    options.seed = uint64_t(seed);
    options.end_tokens = ends.data();
    options.n_end_tokens = ends.size();
    options.ignore_end_tokens = ignore_end_tokens;
    Listener to = {env, listener};
    int32_t stopped = 0;
    const int32_t code =
        edgeqkv_session_generate(object->session, given.data(), given.size(), &options, on_token, &to, &stopped);
    if (env->ExceptionCheck()) throw Pending();
    must(code);
    return jint(stopped);
  });
}

void save(JNIEnv* env, jclass, jlong session, jbyteArray path) {
  guarded(env, [&] { must(edgeqkv_session_save(sessions().at(session)->session, name_of(env, path).c_str())); });
}

void restore(JNIEnv* env, jclass, jlong session, jbyteArray path) {
  guarded(env, [&] { must(edgeqkv_session_restore(sessions().at(session)->session, name_of(env, path).c_str())); });
}

jlong fork(JNIEnv* env, jclass, jlong session) {
  return guarded(env, [&] {
    const SessionReference object = sessions().at(session);
    edgeqkv_session* copy = nullptr;
    must(edgeqkv_session_fork(object->session, &copy));
    return sessions().add(std::make_shared<SessionObject>(copy, object->vocab_size));
  });
}

void serve(JNIEnv* env, jclass, jint descriptor) {
  guarded(env, [&] { edgeqkv::serve(descriptor, descriptor, {}); });
}

}  // namespace native

template <class Function>
JNINativeMethod method(const char* name, const char* signature, Function* function) {
  return {const_cast<char*>(name), const_cast<char*>(signature), reinterpret_cast<void*>(function)};
}

}  // namespace

extern "C" JNIEXPORT jint JNICALL JNI_OnLoad(JavaVM* vm, void*) {
  JNIEnv* env = nullptr;
  if (vm->GetEnv(reinterpret_cast<void**>(&env), JNI_VERSION_1_6) != JNI_OK) return JNI_ERR;
  const jclass found = env->FindClass("io/github/edgeqkv/Native");
  if (!found) return JNI_ERR;  // the reason is pending
  java.native = static_cast<jclass>(env->NewGlobalRef(found));
  java.failure = env->GetStaticMethodID(found, "failure", "(I[B)Lio/github/edgeqkv/EdgeQKVException;");
  if (!java.failure) return JNI_ERR;
  java.on_token = env->GetStaticMethodID(found, "onToken", "(Lio/github/edgeqkv/TokenListener;J[B)Z");
  if (!java.on_token) return JNI_ERR;
  const JNINativeMethod methods[] = {
      method("version", "()[B", native::version),
      method("memory", "()[J", native::memory),
      method("open", "([B[B[BIZ[B[B)J", native::open),
      method("closeBundle", "(J)V", native::close_bundle),
      method("bundleTexts", "(J)[[B", native::bundle_texts),
      method("bundleNumbers", "(J)[J", native::bundle_numbers),
      method("encode", "(J[BZ)[J", native::encode),
      method("decode", "(J[J)[B", native::decode),
      method("newSession", "(J)J", native::new_session),
      method("closeSession", "(J)V", native::close_session),
      method("depth", "(J)I", native::depth),
      method("cancel", "(J)V", native::cancel),
      method("tokens", "(J)[J", native::tokens),
      method("logits", "(J[F)Z", native::logits),
      method("prefill", "(J[J)V", native::prefill),
      method("step", "(JJ)V", native::step),
      method("feed", "(J[J)V", native::feed),
      method("rewind", "(JI)V", native::rewind),
      method("generate", "(J[JIDIDDJ[JZLio/github/edgeqkv/TokenListener;)I", native::generate),
      method("save", "(J[B)V", native::save),
      method("restore", "(J[B)V", native::restore),
      method("fork", "(J)J", native::fork),
      method("serve", "(I)V", native::serve),
  };
  return env->RegisterNatives(found, methods, jint(std::size(methods))) == JNI_OK ? JNI_VERSION_1_6 : JNI_ERR;
}
