package io.github.edgeqkv.demo

import android.app.Service
import android.content.ComponentName
import android.content.Context
import android.content.Intent
import android.content.ServiceConnection
import android.os.Bundle
import android.os.Handler
import android.os.IBinder
import android.os.Looper
import android.os.Message
import android.os.Messenger
import android.os.ParcelFileDescriptor
import android.os.Process
import android.os.RemoteException
import android.system.ErrnoException
import android.system.Os
import android.system.OsConstants
import io.github.edgeqkv.BenchWorker
import java.util.concurrent.LinkedBlockingQueue
import java.util.concurrent.TimeUnit

/**
 * A process that the compare screen measures. Whoever binds it sends one end of a socket pair, over which the library's worker
 * answers; nobody outside of this app can bind it. The process ends with the connection, so that nothing of one model is in
 * memory when the next is measured.
 */
abstract class MeasureService : Service() {
    override fun onBind(intent: Intent): IBinder = Messenger(Handler(Looper.getMainLooper(), ::serve)).binder

    override fun onUnbind(intent: Intent): Boolean {
        Process.killProcess(Process.myPid())
        return false
    }

    @Suppress("DEPRECATION") // the new one is of Android 13
    private fun serve(message: Message): Boolean {
        val socket = message.data.getParcelable<ParcelFileDescriptor>(SOCKET) ?: return false
        Thread({ socket.use { BenchWorker.serve(it.fd) } }, "measured").start()
        return true
    }

    companion object {
        const val SOCKET = "socket"
    }
}

class MeasureService0 : MeasureService()

class MeasureService1 : MeasureService()

class MeasureService2 : MeasureService()

class MeasureService3 : MeasureService()

/** Starts those processes. Not for the main thread, which is told when they are there. */
class AppProcesses(private val context: Context) : Processes {
    override fun start(number: Int): MeasuredProcess {
        val binders = LinkedBlockingQueue<IBinder>()
        val connection = object : ServiceConnection {
            override fun onServiceConnected(name: ComponentName, service: IBinder) {
                binders += service
            }

            // Android starts it again; a process that ends while it is measured has closed its socket.
            override fun onServiceDisconnected(name: ComponentName) = Unit
        }
        val intent = Intent(context, SERVICES[number])
        // Important: it is measured on behalf of what the user looks at, and gets that one's cores.
        if (!context.bindService(intent, connection, Context.BIND_AUTO_CREATE or Context.BIND_IMPORTANT)) {
            context.unbindService(connection)
            throw Refused("Android does not start the process that is to be measured")
        }
        val end = System.nanoTime() + TimeUnit.SECONDS.toNanos(SECONDS_TO_START)
        while (true) {
            val binder = binders.poll(end - System.nanoTime(), TimeUnit.NANOSECONDS)
            if (binder == null) {
                context.unbindService(connection)
                throw Refused("the process that is to be measured does not start")
            }
            // The first binder may be that of a process which is about to end, since it was measured before.
            answering(binder, connection)?.let { return it }
        }
    }

    private fun answering(binder: IBinder, connection: ServiceConnection): MeasuredProcess? {
        val (ours, theirs) = ParcelFileDescriptor.createSocketPair()
        val data = Bundle().apply { putParcelable(MeasureService.SOCKET, theirs) }
        try {
            theirs.use { Messenger(binder).send(Message.obtain().apply { this.data = data }) }
        } catch (error: RemoteException) {
            ours.close()
            return null
        }
        val process = LineProcess(
            ParcelFileDescriptor.AutoCloseInputStream(ours),
            java.io.FileOutputStream(ours.fileDescriptor),
        ) { end(ours, connection) }
        return try {
            process.ask("memory")
            process
        } catch (error: Refused) {
            ours.close()
            null
        }
    }

    /** Wakes who waits for an answer, and lets the process end. */
    private fun end(socket: ParcelFileDescriptor, connection: ServiceConnection) {
        try {
            Os.shutdown(socket.fileDescriptor, OsConstants.SHUT_RDWR)
        } catch (error: ErrnoException) {
            // the other side has ended it
        } catch (error: IllegalStateException) {
            return // ended before
        }
        try {
            context.unbindService(connection)
        } catch (error: IllegalArgumentException) {
            // ended before
        }
    }

    private companion object {
        val SERVICES = listOf(
            MeasureService0::class.java,
            MeasureService1::class.java,
            MeasureService2::class.java,
            MeasureService3::class.java,
        )
        const val SECONDS_TO_START = 20L
    }
}

private operator fun Array<ParcelFileDescriptor>.component1() = get(0)

private operator fun Array<ParcelFileDescriptor>.component2() = get(1)
